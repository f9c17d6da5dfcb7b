"""The settings as keywords, as editors and type checkers read them: `Server(port=80)`.

`config.Settings` is the table that is gone by. This one is for the eye alone, and imported by no program;
tests/test_keywords.py sees to it that the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class Keywords(TypedDict, total=False):
    """What `Server(...)` takes beside its middleware; `config.Settings` says what each is, and its unit."""

    capacity: int
    timeout: int
    wait: int
    start_timeout: int
    event_timeout: int
    stall_timeout: int
    stream_buffer: int
    drain_timeout: int
    max_workers: int
    admin_socket: str
    ray_port: int
    ray_tls: Literal["auto", "on", "off"]
    http_processes: int
    engine: str
    load_shedding: bool
    priority_header: bool
    tenant_header: str
    tenant_weights: str
    address: str
    port: int
    uds: str
    ssl_certfile: str
    ssl_keyfile: str
    http: Literal["auto", "plain"]
    namespace: str
    log_level: Literal["debug", "info", "warning", "error"]
    debug: bool
    dashboard: bool
    access_log: bool
    tracing: bool
    server_timing: bool
    dry_run: bool
    compression: bool
    max_request_size: int
    body_memory: int
    answer_memory: int
    keep_alive: int
    stop_delay: int
    read_timeout: int
    least_rate: int
    max_head_size: int
    max_url_size: int
    pipelined: int
    shared_memory: int
    strict_json: bool
    api_keys: str | Sequence[str]
    api_key_file: str
    public: Sequence[Literal["root", "metrics", "docs", "dashboard"]] | str
    cors_origins: str | Sequence[str]
    allowed_hosts: str | Sequence[str]
    title: str
    version: str
    path: str
