"""The service on Flask: what every request meets, and the views of each dialect beyond the own routes."""
