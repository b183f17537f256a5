"""What is warned of at a start: misspelt names, lines that cannot be read, values without effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.setting_warnings import find_warnings
from relay.settings import Settings, SettingsError
from tests.processes import Service


def warn(text: str = "", **environ: str) -> list[str]:
    """The warnings of a file `.env` and an environment."""
    Path(".env").write_text(text)
    known = {name: value for name, value in environ.items() if value}
    return find_warnings(Settings.from_env(known), environ)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("OPENAI_BASEURL=http://x", "OPENAI_BASE_URL"),
        ("OPENAI_API_KEYS=a-secret", "OPENAI_API_KEY"),
        ("API_KEY=a-secret", "OPENAI_API_KEY"),
        ("AUTHORISATION=a-secret", "AUTHORIZATION"),
        ("export PROT=80", "PORT"),
        ("openai_model=qwen3", "OPENAI_MODEL"),
        ("Access_Token=a-secret", "ACCESS_TOKEN"),
        ("OPENAI_API_KEY_FIEL=/key", "OPENAI_API_KEY_FILE"),
    ],
)
def test_a_misspelt_name_in_the_file(line: str, meant: str) -> None:
    name = line.removeprefix("export ").partition("=")[0]
    [warning] = warn(f"# settings\n\n{line}\n")
    assert warning == f"{name} in .env is no setting: is {meant} meant?"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "COMPOSE_PROJECT_NAME=chat\nTZ=Europe/Berlin\nPOSTGRES_PASSWORD=secret\n",
        "PORT=8081\naccess_token=x\nAUTHORIZATION_KEY=alices-client-key\n",
        "OPENAI_API_BASE=http://x\nOPENAI_API_KEY_FILE=/key\n# OPENAI_BASEURL=x\n",
        "OPENAI_MODEL=\n",
    ],
    ids=["empty", "others", "other-names", "files", "unset"],
)
def test_no_warning_without_a_reason(text: str) -> None:
    assert warn(text) == []


def test_names_in_the_environment_must_be_very_similar() -> None:
    environ = {"OPENAI_APIKEY": "x", "openai_model": "x", "AUTHORISATION": "x"}
    meant = [warning.split(" is ")[2] for warning in warn(**environ)]
    assert meant == [
        f"{name} meant?" for name in ("OPENAI_API_KEY", "OPENAI_MODEL", "AUTHORIZATION")
    ]
    usual = (
        "PROT",
        "port",
        "HOSTNAME",
        "LOGNAME",
        "SHELL",
        "XDG_DATA_DIRS",
        "no_proxy",
    )
    assert warn(**dict.fromkeys(usual, "x"), ANTHROPIC_API_KEY="x") == []


def test_lines_that_cannot_be_read_are_named_by_their_number_alone() -> None:
    warnings = warn("PORT=8080\n\n\nsecret-key-1\nmy secret\nHOST='unclosed\nPORT=1\n")
    assert warnings == [
        ".env, line 4: it is no NAME=value, and is ignored.",
        ".env, line 5: it is no NAME=value, and is ignored.",
        ".env, line 6: it is no NAME=value, and is ignored.",
    ]


def test_a_file_in_another_encoding_is_named() -> None:
    Path(".env").write_bytes(b"AUTHORIZATION=caf\xe9-client-key\n")
    with pytest.raises(SettingsError, match="^.env cannot be read: it is not in UTF-8"):
        Settings.load()


def test_what_the_environment_overrides() -> None:
    text = "PORT=1\nHOST=127.0.0.1\nACCESS_TOKEN=from-the-file\n"
    environ = {"PORT": "2", "HOST": "127.0.0.1", "access_token": "from-environment"}
    assert warn(text, **environ) == [
        "PORT in .env has no effect: PORT in the environment overrides it.",
        "ACCESS_TOKEN in .env has no effect: access_token in the environment "
        "overrides it.",
    ]
    assert warn("PORT=1\n", PORT="") == []


def test_a_second_name_of_the_same_setting() -> None:
    environ = {
        "AUTHORIZATION": "alices-client-key",
        "AUTHORIZATION_KEY": "bobs-client-key",
    }
    sentence = (
        "AUTHORIZATION_KEY in {0} has no effect: AUTHORIZATION in {0} overrides it."
    )
    assert warn(**environ) == [sentence.format("the environment")]
    text = "".join(f"{name}={value}\n" for name, value in environ.items())
    assert warn(text) == [sentence.format(".env")]
    same = {name: "alices-client-key" for name in environ}
    assert warn(**same) == []


@pytest.mark.parametrize(
    ("environ", "name", "hint"),
    [
        ({"CHATGPT_BASE_URL": "http://x", "REVERSE_PROXY": "http://y"}, "CHATGPT_BASE_URL", "REVERSE_PROXY"),
        ({"POW_DIFFICULTY": "0001", "REVERSE_PROXY": "http://y"}, "POW_DIFFICULTY", "REVERSE_PROXY"),
        ({"CONVERSATION_ONLY": "true", "REVERSE_PROXY": "http://y"}, "CONVERSATION_ONLY", "REVERSE_PROXY"),
        ({"ARKOSE_TOKEN_URL": "http://y", "CONVERSATION_ONLY": "true"}, "ARKOSE_TOKEN_URL", "CONVERSATION_ONLY"),
        ({"OPENAI_MODEL": "qwen3"}, "OPENAI_MODEL", "OPENAI_API_KEY"),
        ({"OPENAI_HEADERS": '{"A": "b"}'}, "OPENAI_HEADERS", "OPENAI_BASE_URL"),
        ({"OPENAI_BODY": '{"a": 1}'}, "OPENAI_BODY", "OPENAI_BASE_URL"),
        ({"ACCESS_TOKEN": "x", "UPSTREAM": "offline"}, "ACCESS_TOKEN", "UPSTREAM"),
        ({"OPENAI_API_KEY": "x", "UPSTREAM": "chatgpt-web"}, "OPENAI_API_KEY", "UPSTREAM"),
        ({"OPENAI_API_KEY": "x", "ACCESS_TOKEN": "y"}, "OPENAI_API_KEY", "UPSTREAM=openai"),
        ({"TLS_CLIENT": "chrome_133", "REVERSE_PROXY": "http://y"}, "TLS_CLIENT", "no https one"),
        ({"TLS_CLIENT": "chrome_133", "OPENAI_BASE_URL": "http://y"}, "TLS_CLIENT", "OPENAI_BASE_URL"),
        ({"PROXY_URL": "http://h:1", "OPENAI_BASE_URL": "http://y"}, "PROXY_URL", "OPENAI_BASE_URL"),
        ({"ALLOWED_HOSTS": "x.example", "AUTHORIZATION": "alices-client-key"}, "ALLOWED_HOSTS", "no client key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_values_without_effect(environ: dict[str, str], name: str, hint: str) -> None:
    [warning] = warn(**environ)
    assert warning.startswith(f"{name} has no effect") and hint in warning


def test_another_name_of_the_address() -> None:
    settings = Settings.from_env({"OPENAI_API_BASE": "http://localhost:1"})
    assert settings.openai_base_url == "http://localhost:1"


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
def test_the_log_has_each_warning_once_and_no_value(
    serve: Callable[..., Service], server: str
) -> None:
    service = serve(
        server, OPENAI_BASEURL="http://secret.example", OPENAI_MODEL="qwen3"
    )
    assert service.logged().count("is OPENAI_BASE_URL meant?") == 1
    assert service.logged().count("OPENAI_MODEL has no effect") == 1
    assert "secret.example" not in service.logged()
