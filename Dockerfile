FROM python:3.12-slim AS build
COPY requirements.lock .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data chatgpt && chmod 700 /data
COPY --from=build /venv /venv
WORKDIR /srv
COPY chatgpt_webapi.py wsgi.py ./
COPY relay relay
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=80 DATA_DIR=/data
USER chatgpt
VOLUME /data
EXPOSE 80
HEALTHCHECK CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/healthz\", timeout=3)"]
CMD ["python", "chatgpt_webapi.py"]
