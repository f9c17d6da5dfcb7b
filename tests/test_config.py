from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from mosec_asgi.config import (
    FIELDS,
    FLAGS,
    KEYWORD_ONLY,
    NO_FLAG,
    Settings,
    advise,
    build_parser,
    check_keywords,
    from_command_line,
    listed,
    parse_command_line,
    resolve,
)
from mosec_asgi.errors import DefinitionError

# For each setting a value that is not its default, as the program, the environment and the command line write it.
OTHER: dict[str, tuple[Any, str, list[str] | None]] = {
    "capacity": (7, "7", ["--capacity", "7"]),
    "timeout": (50, "50", ["--timeout", "50"]),
    "wait": (0, "0", ["--wait", "0"]),
    "start_timeout": (1, "1", ["--start-timeout", "1"]),
    "event_timeout": (7, "7", ["--event-timeout", "7"]),
    "stall_timeout": (7, "7", ["--stall-timeout=7"]),
    "stream_buffer": (4096, "4096", ["--stream-buffer", "4096"]),
    "drain_timeout": (7, "7", ["--drain-timeout", "7"]),
    "max_workers": (7, "7", ["--max-workers", "7"]),
    "admin_socket": ("/run/b.sock", "/run/b.sock", ["--admin-socket", "/run/b.sock"]),
    "ray_port": (7007, "7007", ["--ray-port", "7007"]),
    "ray_tls": ("on", "on", ["--ray-tls", "on"]),
    "http_processes": (2, "2", ["--http-processes", "2"]),
    "engine": ("/run/e.sock", "/run/e.sock", ["--engine", "/run/e.sock"]),
    "load_shedding": (False, "off", ["--no-load-shedding"]),
    "priority_header": (True, "1", ["--priority-header"]),
    "tenant_header": ("x-fairness-key", "x-fairness-key", ["--tenant-header", "x-fairness-key"]),
    "tenant_weights": ("gold=3", "gold=3", ["--tenant-weights", "gold=3"]),
    "address": ("127.0.0.1", "127.0.0.1", ["--address", "127.0.0.1"]),
    "port": (8123, "8123", ["--port=8123"]),
    "uds": ("/run/a.sock", "/run/a.sock", ["--uds", "/run/a.sock"]),
    "ssl_certfile": ("c.pem", "c.pem", ["--ssl-certfile=c.pem"]),
    "ssl_keyfile": ("k.pem", "k.pem", ["--ssl-keyfile=k.pem"]),
    "http": ("plain", "plain", ["--http", "plain"]),
    "namespace": ("other", "other", ["--namespace", "other"]),
    "log_level": ("error", "error", ["--log-level", "error"]),
    "debug": (True, "true", ["--debug"]),
    "dashboard": (True, "on", ["--dashboard"]),
    "access_log": (True, "true", ["--access-log"]),
    "tracing": (True, "1", ["--tracing"]),
    "server_timing": (True, "1", ["--server-timing"]),
    "dry_run": (True, "1", ["--dry-run"]),
    "compression": (True, "yes", ["--compression"]),
    "max_request_size": (99, "99", ["--max-request-size", "99"]),
    "body_memory": (7, "7", ["--body-memory", "7"]),
    "answer_memory": (7, "7", ["--answer-memory", "7"]),
    "keep_alive": (7, "7", ["--keep-alive", "7"]),
    "stop_delay": (7, "7", ["--stop-delay", "7"]),
    "read_timeout": (7, "7", ["--read-timeout", "7"]),
    "least_rate": (7, "7", ["--least-rate", "7"]),
    "max_head_size": (9999, "9999", ["--max-head-size", "9999"]),
    "max_url_size": (99, "99", ["--max-url-size", "99"]),
    "pipelined": (7, "7", ["--pipelined", "7"]),
    "shared_memory": (0, "0", ["--shared-memory", "0"]),
    "strict_json": (True, "1", ["--strict-json"]),
    "path": ("/tmp/x", "/tmp/x", ["--path", "/tmp/x"]),
    "api_keys": ("a-key /v1/*,b-key", "a-key /v1/*,b-key", None),
    "api_key_file": ("/run/keys", "/run/keys", ["--api-key-file", "/run/keys"]),
    "public": ("docs,metrics", "docs,metrics", ["--public", "docs,metrics"]),
    "cors_origins": ("https://a.example", "https://a.example", ["--cors-origins", "https://a.example"]),
    "allowed_hosts": ("a.example", "a.example", ["--allowed-hosts", "a.example"]),
}


def test_debug_shows_the_dashboard_as_well() -> None:
    assert not Settings().shows_dashboard
    assert Settings(debug=True).shows_dashboard
    assert Settings(dashboard=True).shows_dashboard


def test_the_defaults_are_those_of_the_design() -> None:
    assert dataclasses.asdict(resolve({}, {})) == {
        "capacity": 1024,
        "timeout": 3000,
        "wait": 10,
        "start_timeout": 30 * 60 * 1000,
        "event_timeout": 0,
        "stall_timeout": 30_000,
        "stream_buffer": 256 * 1024,
        "drain_timeout": 0,
        "max_workers": 64,
        "ray_port": 0,
        "ray_tls": "auto",
        "admin_socket": "",
        "http_processes": 1,
        "engine": "",
        "load_shedding": True,
        "priority_header": False,
        "tenant_header": "",
        "tenant_weights": "",
        "address": "0.0.0.0",
        "port": 8000,
        "uds": "",
        "ssl_certfile": "",
        "ssl_keyfile": "",
        "http": "auto",
        "namespace": "mosec_service",
        "log_level": "info",
        "debug": False,
        "dashboard": False,
        "access_log": False,
        "tracing": False,
        "server_timing": False,
        "dry_run": False,
        "compression": False,
        "max_request_size": 10 * 1024 * 1024,
        "body_memory": 0,
        "answer_memory": 0,
        "keep_alive": 75_000,
        "stop_delay": 500,
        "read_timeout": 20_000,
        "least_rate": 1000,
        "max_head_size": 64 * 1024,
        "max_url_size": 16 * 1024,
        "pipelined": 32,
        "shared_memory": 256 * 1024 * 1024,
        "strict_json": False,
        "title": "mosec-asgi service",
        "version": "",
        "path": "",
        "api_keys": "",
        "api_key_file": "",
        "public": "",
        "cors_origins": "",
        "allowed_hosts": "",
    }


def test_this_file_tries_every_setting() -> None:
    assert OTHER.keys() == FIELDS.keys() - KEYWORD_ONLY


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_can_be_a_keyword_a_variable_or_a_flag(name: str) -> None:
    value, text, arguments = OTHER[name]
    expected = dataclasses.replace(Settings(), **{name: value})
    assert resolve({name: value}, {}) == expected
    assert resolve({}, {"MOSEC_" + name.upper(): text}) == expected
    if arguments is None:
        assert name in NO_FLAG
        return
    given = parse_command_line(Settings(), arguments)
    assert given == {name: value}
    assert resolve({}, {}, given) == expected


def test_the_environment_wins_over_the_program_and_the_command_line_over_both() -> None:
    assert resolve({"port": 1}, {"MOSEC_PORT": "2"}).port == 2
    assert resolve({"port": 1}, {"MOSEC_PORT": "2"}, {"port": 3}).port == 3
    assert resolve({"port": 1, "wait": 5}, {"MOSEC_PORT": "2", "MOSEC_TIMEOUT": "4"}, {}) == Settings(
        port=2, wait=5, timeout=4
    )


def test_an_empty_variable_counts_as_none() -> None:
    assert resolve(
        {"port": 1, "debug": True, "namespace": "mine"}, {"MOSEC_PORT": "", "MOSEC_DEBUG": "", "MOSEC_NAMESPACE": ""}
    ) == Settings(port=1, debug=True, namespace="mine")


def test_other_variables_are_left_alone() -> None:
    assert resolve({}, {"MOSEC_OTHER": "1", "PORT": "9", "mosec_port": "9"}) == Settings()


def test_the_processes_own_environment_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSEC_PORT", "4321")
    assert resolve({}).port == 4321


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("yes", True), ("On", True), ("0", False), ("false", False), ("no", False)],
)
def test_a_switch_in_the_environment_is_read_as_words_or_digits(text: str, value: bool) -> None:
    assert resolve({"debug": not value}, {"MOSEC_DEBUG": text}).debug is value


@pytest.mark.parametrize(
    ("keywords", "environment", "text"),
    [
        ({"port": -1}, {}, r"Server\(port=\.\.\.\) must be at least 0, not -1"),
        ({"port": 8000.0}, {}, r"Server\(port=\.\.\.\) must be a whole number, not 8000.0 \(float\)"),
        ({"port": True}, {}, r"Server\(port=\.\.\.\) must be a whole number, not True \(bool\)"),
        ({"debug": 1}, {}, r"Server\(debug=\.\.\.\) must be True or False, not 1 \(int\)"),
        ({"namespace": None}, {}, r"Server\(namespace=\.\.\.\) must be text, not None"),
        ({"capacity": 0}, {}, "must be at least 1, not 0"),
        ({"timeout": -1}, {}, "must be at least 0, not -1"),
        ({"wait": -1}, {}, "must be at least 0, not -1"),
        ({"max_request_size": 0}, {}, "must be at least 1, not 0"),
        ({"start_timeout": 0}, {}, "must be at least 1, not 0"),
        ({"event_timeout": -1}, {}, "must be at least 0, not -1"),
        ({"stall_timeout": 0}, {}, "must be at least 1, not 0"),
        ({"stream_buffer": 1023}, {}, "must be at least 1024, not 1023"),
        ({"load_shedding": 1}, {}, r"Server\(load_shedding=\.\.\.\) must be True or False, not 1 \(int\)"),
        ({"log_level": "loud"}, {}, "must be one of debug, info, warning, error, not 'loud'"),
        ({}, {"MOSEC_PORT": "http"}, "the environment variable MOSEC_PORT must be a whole number, not 'http'"),
        ({}, {"MOSEC_WAIT": "1.5"}, "the environment variable MOSEC_WAIT must be a whole number of milliseconds"),
        ({"timeout": 3.0}, {}, "must be a whole number of milliseconds, not 3.0"),
        ({}, {"MOSEC_TIMEOUT": "3s"}, "must be a whole number of milliseconds, not '3s'; write 3000$"),
        ({}, {"MOSEC_TIMEOUT": "3 parsecs"}, "not '3 parsecs'$"),
        ({}, {"MOSEC_MAX_REQUEST_SIZE": "10MB"}, "must be a whole number of bytes, not '10MB'; write 10485760$"),
        ({}, {"MOSEC_CAPACITY": "0"}, "the environment variable MOSEC_CAPACITY must be at least 1"),
        ({}, {"MOSEC_DEBUG": "maybe"}, "the environment variable MOSEC_DEBUG must be true or false, not 'maybe'"),
        ({}, {"MOSEC_LOG_LEVEL": "loud"}, "the environment variable MOSEC_LOG_LEVEL must be one of"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_source(
    keywords: dict[str, Any], environment: dict[str, str], text: str
) -> None:
    with pytest.raises(DefinitionError, match=text):
        resolve(keywords, environment)


def test_a_value_from_the_command_line_that_does_not_fit_is_refused_by_its_flag() -> None:
    with pytest.raises(DefinitionError, match="the argument --max-request-size must be at least 1, not 0"):
        resolve({}, {}, {"max_request_size": 0})


def test_a_port_that_does_not_exist_is_refused() -> None:
    assert resolve({"port": 65535}, {}).port == 65535
    with pytest.raises(DefinitionError, match="must be at most 65535, not 65536"):
        resolve({"port": 65536}, {})


def test_an_unknown_keyword_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(DefinitionError, match=r"unknown setting qqq; the settings are capacity, .*port"):
        check_keywords({"qqq": 1, "port": 1})


def test_an_unknown_keyword_is_refused_with_the_nearest_name() -> None:
    told = r"unknown setting adress, prot; did you mean address, port\? The settings are capacity, .*port"
    with pytest.raises(DefinitionError, match=told):
        check_keywords({"prot": 1, "adress": "", "port": 1})
    with pytest.raises(DefinitionError, match=r"unknown setting host; did you mean address\?"):
        check_keywords({"host": ""})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_the_timeout_in_seconds_and_the_level_that_counts() -> None:
    assert Settings(timeout=1500).timeout_seconds == 1.5
    assert Settings(timeout=1500).event_timeout_seconds == 1.5, "unless it has a value of its own"
    assert Settings(timeout=1500, event_timeout=20).event_timeout_seconds == 0.02
    assert Settings(log_level="error").effective_log_level == "error"
    assert Settings(log_level="error", debug=True).effective_log_level == "debug"


# -- the command line --------------------------------------------------------------------------------------------------


def test_arguments_that_are_not_the_servers_own_are_left_to_the_program() -> None:
    given = parse_command_line(Settings(), ["train", "--model", "big", "--port", "9000", "-v", "--sort", "1"])
    assert given == {"port": 9000}


def test_no_arguments_give_no_settings() -> None:
    assert parse_command_line(Settings(port=1), []) == {}


def test_the_processes_own_arguments_are_read_where_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", "--port", "9000"])
    assert parse_command_line(Settings()) == {"port": 9000}


def test_help_shows_each_flag_with_the_default_that_the_program_has_set() -> None:
    text = " ".join(build_parser(Settings(port=8765), "server.py").format_help().split())
    assert all(flag in text for flag in FLAGS.values())
    assert "(default: 8765)" in text
    assert "MOSEC_PORT" in text


def test_help_survives_a_percent_sign_in_a_setting() -> None:
    text = " ".join(build_parser(Settings(address="fe80::1%eth0")).format_help().split())
    assert "(default: 'fe80::1%eth0')" in text


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--port", "http"], {}, "the argument --port must be a whole number, not 'http'"),
        (
            ["--timeout", "3s"],
            {},
            "the argument --timeout must be a whole number of milliseconds, not '3s'; write 3000",
        ),
        (["--debug=maybe"], {}, "--debug (alone it turns debug on) must be true or false, not 'maybe'"),
        (["--log-level", "loud"], {}, "--log-level"),
        (["--capacity", "0"], {}, "the argument --capacity must be at least 1"),
        ([], {"MOSEC_PORT": "http"}, "MOSEC_PORT must be a whole number"),
    ],
)
def test_a_program_with_a_wrong_setting_ends_with_status_2_and_the_reason(
    arguments: list[str],
    environment: dict[str, str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        from_command_line({})
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_program_is_run_with_its_command_line_over_its_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", "--port", "9000", "--mine"])
    monkeypatch.setenv("MOSEC_TIMEOUT", "77")
    assert from_command_line({"port": 1, "wait": 2}) == Settings(port=9000, wait=2, timeout=77)


# -- what is meant -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("--prot", "--port"),
        ("--pport=1", "--port"),
        ("--host", "--address"),
        ("--bind=x", "--address"),
        ("--adress", "--address"),
        ("--log_level=debug", "--log-level"),
        ("--loglevel", "--log-level"),
        ("--timeuot", "--timeout"),
        ("--time-out", "--timeout"),
        ("--tineout", "--timeout"),
        ("--PORT", "--port"),
        ("--start-time", "--start-timeout"),
        ("--max-url", "--max-url-size"),
        ("--no-load-sheding", "--no-load-shedding"),
    ],
)
def test_a_slip_of_one_of_our_flags_is_refused_with_what_is_meant(argument: str, flag: str) -> None:
    name = argument.partition("=")[0]
    with pytest.raises(DefinitionError, match=f"^unknown argument {name}; did you mean {flag}\\?$"):
        parse_command_line(Settings(), [argument, "1"])


@pytest.mark.parametrize(
    "argument", ["--sort", "--ports", "--patch", "--paths", "--model-path", "--fast", "prot", "-p", "--", "--waiter"]
)
def test_another_word_is_left_to_the_program(argument: str) -> None:
    assert parse_command_line(Settings(), [argument, "1"]) == {}


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--max-request", "5"], {"max_request_size": 5}),
        (["--time", "5000"], {"timeout": 5000}),
        (["--cap=10"], {"capacity": 10}),
        (["--por", "1"], {"port": 1}),
        (["--dry"], {"dry_run": True}),
    ],
)
def test_a_flag_of_mosecs_may_be_abbreviated_as_there(
    arguments: list[str], given: dict[str, Any], logged: pytest.LogCaptureFixture
) -> None:
    assert parse_command_line(Settings(), arguments) == given
    assert "is taken for --" in logged.text


@pytest.mark.parametrize(
    "arguments",
    [["--time", "now"], ["--po", "1"], ["--stream"], ["--max", "5"], ["--version"], ["--title", "x"], ["--http"],
     ["--http", "8080"], ["--http=http://x"], ["--", "--port", "9"]],
)  # fmt: skip
def test_a_flag_of_the_programs_own_is_none_of_ours(arguments: list[str], logged: pytest.LogCaptureFixture) -> None:
    assert parse_command_line(Settings(), arguments) == {}
    assert not logged.text


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("--debug=true", {"debug": True}),
        ("--debug=no", {}),
        ("--load-shedding=off", {"load_shedding": False}),
        ("--load-shedding=on", {"load_shedding": True}),
    ],
)
def test_a_switch_may_be_given_its_value(argument: str, given: dict[str, Any]) -> None:
    assert parse_command_line(Settings(), [argument]) == given


def test_title_and_version_are_of_the_program_alone() -> None:
    assert resolve({"title": "Cats"}, {"MOSEC_TITLE": "Dogs", "MOSEC_VERSION": "3"}) == Settings(title="Cats")


def test_a_variable_that_says_something_else_of_http_is_ignored(logged: pytest.LogCaptureFixture) -> None:
    assert resolve({}, {"MOSEC_HTTP": "8080"}) == Settings()
    assert "MOSEC_HTTP=8080 is ignored" in logged.text


def test_a_time_that_is_meant_in_seconds_is_warned_of(logged: pytest.LogCaptureFixture) -> None:
    advise(Settings(timeout=50, start_timeout=60_000))
    assert not logged.text
    advise(Settings(timeout=3, start_timeout=30))
    assert "timeout=3 is in milliseconds (--timeout, MOSEC_TIMEOUT); for 3 seconds write 3000" in logged.text
    assert "start_timeout=30 is in milliseconds" in logged.text


def test_a_slip_ends_the_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", "--prot", "9000"])
    with pytest.raises(SystemExit) as stop:
        from_command_line({})
    assert stop.value.code == 2
    assert "did you mean --port?" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["tcp://10.0.0.1:80", "udp://10.0.0.1:80"])
def test_a_port_that_kubernetes_has_set_is_ignored_with_a_warning(text: str, logged: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert resolve({"port": 7}, {"MOSEC_PORT": text}).port == 7
    (record,) = logged.records
    assert (record.levelname, "Kubernetes" in record.getMessage()) == ("WARNING", True)
    with pytest.raises(DefinitionError, match="MOSEC_PORT must be a whole number"):
        resolve({}, {"MOSEC_PORT": "http://x"})


def test_a_timeout_of_0_is_none_and_a_stop_is_bounded_all_the_same() -> None:
    unlimited = Settings(timeout=0)
    day = 24 * 3600
    assert unlimited.timeout_seconds > 100 * day
    assert unlimited.event_timeout_seconds > 100 * day
    assert 0 < unlimited.grace_seconds < 60
    assert Settings(timeout=0, event_timeout=7).event_timeout_seconds == 0.007
    assert Settings(timeout=5000).timeout_seconds == Settings(timeout=5000).grace_seconds == 5


def test_a_key_of_a_client_that_protects_no_service_is_said_without_showing_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = {"MOSEC_API_KEY": "a-secret-of-many-letters"}
    advise(Settings(api_keys="another-secret"), key)
    advise(Settings(api_key_file="keys"), key)
    advise(Settings(), {})
    assert not caplog.records
    advise(Settings(), key)
    [text] = [record.getMessage() for record in caplog.records]
    assert "this service asks for no API key, though MOSEC_API_KEY is set" in text
    assert "MOSEC_API_KEYS or MOSEC_API_KEY_FILE" in text
    assert "secret" not in text


# -- settings that are lists -------------------------------------------------------------------------------------------


def test_a_list_may_be_given_as_one_or_with_commas() -> None:
    assert resolve({"public": ["docs", "metrics"]}, {}) == resolve({"public": "docs,metrics"}, {})
    assert listed(resolve({"cors_origins": ("https://a.example", "https://b.example")}, {}).cors_origins) == (
        "https://a.example",
        "https://b.example",
    )


@pytest.mark.parametrize("given", [[], [""], "", " , ", ["a", " "], ["a,b"], 7, [7], None, [b"a"]])
def test_a_list_without_members_is_refused_rather_than_taken_for_none(given: Any) -> None:
    with pytest.raises(DefinitionError, match=r"Server\(api_keys=\.\.\.\) must"):
        resolve({"api_keys": given}, {})


def test_a_member_that_there_is_not_is_named() -> None:
    with pytest.raises(DefinitionError, match=r"must be of root, metrics, docs, dashboard, .* not 'all'"):
        resolve({}, {"MOSEC_PUBLIC": "docs,all"})


@pytest.mark.parametrize(
    "origin",
    ["app.example.com", "https://app.example.com/", "https://app.example.com/page", "https://*.example.com",
     "https://App.example.com", "//app.example.com", "https://"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(DefinitionError, match=r"MOSEC_CORS_ORIGINS must be of origins as .*") as refused:
        resolve({}, {"MOSEC_CORS_ORIGINS": f"https://a.example,{origin}"})
    assert str(refused.value).endswith(f"not {origin!r}")


@pytest.mark.parametrize(
    "host", ["https://api.example.com", "api.example.com:8000", "api.example.com/", "api.*", "*example.com", "[::1]:80"]
)
def test_a_host_name_that_no_request_has_is_refused(host: str) -> None:
    with pytest.raises(DefinitionError, match=r"must be of host names, .* without a scheme, a port") as refused:
        resolve({"allowed_hosts": ["a.example", host]}, {})
    assert str(refused.value).endswith(f"not {host!r}")


def test_origins_and_host_names_of_all_kinds_are_taken() -> None:
    origins = (
        "*,null,https://app.example.com,http://localhost:3000,http://[::1]:3000,chrome-extension://abc,https://a_b.c"
    )
    hosts = "*,localhost,API.example.com,*.example.com,10.0.0.1,::1,[::1],a_b.c,xn--bcher-kva.example"
    settings = resolve({"cors_origins": origins, "allowed_hosts": hosts}, {})
    assert (settings.cors_origins, settings.allowed_hosts) == (origins, hosts)


@pytest.mark.parametrize("name", ["MOSEC_API_KEYS", "MOSEC_API_KEY_FILE"])
def test_an_empty_variable_does_not_let_everybody_in(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"{name} is empty; unset it"):
        resolve({"api_keys": "from-the-program"}, {name: " "})


def test_a_key_stands_neither_among_the_flags_nor_in_the_help_nor_in_what_is_shown_of_the_settings() -> None:
    settings = resolve({"api_keys": ["very-secret"]}, {})
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in build_parser(settings).format_help()
    assert "--api-keys" not in build_parser(settings).format_help()
