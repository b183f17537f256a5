from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from relay.settings import Settings, SettingsError

READ = [
    ("PORT", "80", "port", 80),
    ("API_PREFIX", "secret", "api_prefix", "/secret"),
    ("API_PREFIX", "/my/api/", "api_prefix", "/my/api"),
    ("ALLOW_CALLER_TOKENS", "False", "allow_caller_tokens", False),
    ("ALLOW_CALLER_TOKENS", "any", "allow_caller_tokens", "any"),
    (
        "ALLOWED_HOSTS",
        "Chat.Example.org, b",
        "allowed_hosts",
        ("chat.example.org", "b"),
    ),
    ("MAX_ANSWER", "1MB", "max_answer", 1024**2),
    ("AUTHORIZATION", "a, b:c ,", "authorization", ("a", "b:c")),
    ("AUTHORIZATION_KEY", "a", "authorization", ("a",)),
    (
        "CORS_ORIGINS",
        "https://Example.org,http://x:81",
        "cors_origins",
        ("https://example.org", "http://x:81"),
    ),
    ("READ_TIMEOUT", "1.5", "read_timeout", 1.5),
    ("MAX_BODY", "1kb", "max_body", 1024),
    ("MAX_BODY", "7", "max_body", 7),
    ("LOG_LEVEL", "WARNING", "log_level", "warning"),
    ("ACCESS_TOKEN", "a,b", "access_token", ("a", "b")),
    ("access_token", "a", "access_token", ("a",)),
    (
        "REVERSE_PROXY",
        "https://proxy.example/api/",
        "reverse_proxy",
        "https://proxy.example/api/",
    ),
    (
        "DATABASE_URL",
        "postgres://u:p@h/db",
        "database_url",
        "postgresql+psycopg://u:p@h/db",
    ),
    (
        "DATABASE_URL",
        "postgresql+psycopg://u:p@h:5/db?x=1",
        "database_url",
        "postgresql+psycopg://u:p@h:5/db?x=1",
    ),
    ("OPENAI_API_KEY", "sk-a, sk-b", "openai_api_key", ("sk-a", "sk-b")),
    (
        "OPENAI_BASE_URL",
        "http://localhost:11434",
        "openai_base_url",
        "http://localhost:11434",
    ),
    (
        "OPENAI_BODY",
        '{"stream_options": null}',
        "openai_body",
        {"stream_options": None},
    ),
    ("RETENTION_DAYS", "0.5", "retention_days", 0.5),
    ("HISTORY_BUDGET", "1000000", "history_budget", 1000000),
    ("CONVERSATION_PATH", "/f/conversation", "conversation_path", "f/conversation"),
    (
        "CHATGPT_HEADERS",
        '{"Oai-Language": "en"}',
        "chatgpt_headers",
        {"Oai-Language": "en"},
    ),
    ("CHATGPT_BODY", '{"a": [1]}', "chatgpt_body", {"a": [1]}),
    ("RETRY_TIMES", "0", "retry_times", 0),
    ("HOST", "  ", "host", "127.0.0.1"),
    ("PORT", "", "port", 8080),
]
REFUSED = [
    ("PORT", "http", "port number"),
    ("PORT", "65536", "port number"),
    ("PORT", "²", "port number"),
    ("API_PREFIX", "a/../b", "path"),
    ("API_PREFIX", "/", "path"),
    ("API_PREFIX", "a?b", "path"),
    ("ALLOW_CALLER_TOKENS", "maybe", "true or false"),
    ("CORS_ORIGINS", "https://example.org/page", "origin"),
    ("CORS_ORIGINS", "example.org", "origin"),
    ("ALLOWED_HOSTS", "https://chat.example.org", "host name"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.0/8,nginx", "a network such as"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", "a network such as"),
    ("READ_TIMEOUT", "0", "more than 0"),
    ("READ_TIMEOUT", "1e3", "more than 0"),
    ("READ_TIMEOUT", "-1", "more than 0"),
    ("MAX_BODY", "25 parrots", "size"),
    ("MAX_BODY", "0", "size"),
    ("UPSTREAM", "ofline", "offline"),
    ("AUTHORIZATION", " , ", "no value"),
    ("ACCESS_TOKEN", "at-invented,不要带双引号", "ASCII"),
    ("ACCESS_TOKEN", '"at-invented"', "quotes"),
    ("OPENAI_API_KEY", "sk-invented one,sk-two", "spaces"),
    ("REVERSE_PROXY", "proxy.example", "https://"),
    ("REVERSE_PROXY", "https://user:pass@proxy.example", "without user"),
    ("REVERSE_PROXY_ALLOW", "https://a.example,ftp://b.example", "address"),
    ("CHATGPT_HEADERS", '{"A": 1}', "header names"),
    ("CHATGPT_HEADERS", '{"A": "b\\r\\nC: d"}', "header names"),
    ("CHATGPT_BODY", "[1]", "JSON object"),
    ("ACCOUNT_CONCURRENCY", "-1", "whole number"),
    ("LOG_FORMAT", "xml", "json"),
    ("DATABASE_URL", "mysql://localhost", "sqlite:///"),
    ("DATABASE_URL", "postgresql+psycopg://host", "postgresql"),
    ("DATABASE_URL", "postgresql+psycopg://user:pa@ss:word@127.0.0.1/name", "%40"),
    (
        "DATABASE_URL",
        "postgresql+psycopg://user:pass@127.0.0.1:port/name",
        "no address",
    ),
    ("RETENTION_DAYS", "-1", "days"),
    ("RETENTION_DAYS", "week", "days"),
    ("OPENAI_BASE_URL", "localhost:8000", "https://"),
]


@pytest.mark.parametrize(("env", "value", "name", "expected"), READ)
def test_a_setting_is_read(env: str, value: str, name: str, expected: object) -> None:
    assert getattr(Settings.from_env({env: value}), name) == expected


@pytest.mark.parametrize(("env", "value", "hint"), REFUSED)
def test_what_cannot_be_read_refuses_the_start_and_says_so(
    env: str, value: str, hint: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{env} cannot be read: .*{hint}"):
        Settings.from_env({env: value})


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hidden-key\n")
    settings = Settings.from_env({"AUTHORIZATION_FILE": str(tmp_path / "key")})
    assert settings.authorization == ("hidden-key",)
    assert "hidden-key" not in repr(settings)
    with pytest.raises(SettingsError, match="AUTHORIZATION_FILE"):
        Settings.from_env({"AUTHORIZATION_FILE": str(tmp_path / "no-such-file")})
    with pytest.raises(SettingsError, match="both set"):
        Settings.from_env(
            {"AUTHORIZATION_FILE": str(tmp_path / "key"), "AUTHORIZATION": "another"}
        )
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(
            {
                "DATABASE_URL": "postgresql+psycopg://user:pa@ss:secret-word@127.0.0.1/name"
            }
        )
    assert (
        "secret-word" not in str(refused.value) and refused.value.__suppress_context__
    )


def test_the_environment_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nHOST=127.0.0.2\nLOG_LEVEL=debug\n")
    monkeypatch.setenv("HOST", "127.0.0.3")
    monkeypatch.setenv("LOG_LEVEL", "")
    settings = Settings.load()
    assert (settings.port, settings.host, settings.log_level) == (
        9000,
        "127.0.0.3",
        "debug",
    )


def test_every_setting_says_what_it_means() -> None:
    for field in fields(Settings):
        assert field.metadata["env"] == field.name.upper()
        assert field.metadata["meaning"].endswith(".")


def test_another_name_in_the_file_does_not_beat_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("ACCESS_TOKEN=from-the-file\nAUTHORIZATION_FILE=x\n")
    monkeypatch.setenv("access_token", "from-the-environment")
    monkeypatch.setenv("AUTHORIZATION_KEY", "alices-client-key")
    settings = Settings.load()
    assert settings.access_token == ("from-the-environment",)
    assert settings.authorization == ("alices-client-key",)
