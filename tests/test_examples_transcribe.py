"""examples/transcribe with its real model: what is said in an uploaded recording, whatever its rate and channels."""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, python, running, skip_module_without

np = pytest.importorskip("numpy")
skip_module_without("pocketsphinx", "python_multipart")

EXAMPLE = ROOT / "examples" / "transcribe"
SPEECH = EXAMPLE / "speech.wav"
SAID = "go forward ten meters"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with running(python(EXAMPLE / "server.py"), log) as program:
        program.wait_ready(seconds=120)
        yield program


def recording(channels: int = 1, repeated: int = 1, seconds: float | None = None, width: int = 2) -> bytes:
    """Return the speech as another file: so many channels, so many times the rate."""
    with wave.open(str(SPEECH)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    if seconds is not None:
        samples = np.resize(samples, int(seconds * 16_000))
    samples = np.repeat(np.repeat(samples, repeated)[:, None], channels, axis=1)
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16_000 * repeated)
        file.writeframes(samples.tobytes() if width == 2 else bytes(samples.size * width))
    return made.getvalue()


@pytest.mark.parametrize("audio", [SPEECH.read_bytes(), recording(channels=2, repeated=3)], ids=["as it is", "48 kHz"])
def test_it_hears_what_is_said_and_when(program: Program, audio: bytes) -> None:
    answer = program.client.post("/inference", files={"audio": ("speech.wav", audio)}, timeout=60)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["text"], round(told["seconds"], 1)) == (SAID, 2.8)
    assert [each["word"] for each in told["words"]] == SAID.split()
    times = [each[name] for each in told["words"] for name in ("start", "end")]
    assert times == sorted(times)
    assert 0.3 < times[0] < times[-1] < 2.8


@pytest.mark.parametrize(
    ("audio", "told"),
    [
        (b"ID3 is an MP3", "the file is no WAV"),
        (SPEECH.read_bytes()[:20], "the file is no WAV"),
        (recording(seconds=61), "60 s at most"),
        (recording(seconds=0), "60 s at most"),
        (recording(width=1), "16 bits a sample"),
    ],
)
def test_what_it_cannot_read_is_refused_with_the_reason(program: Program, audio: bytes, told: str) -> None:
    answer = program.client.post("/inference", files={"audio": ("a.wav", audio)})
    assert answer.status_code == 422
    assert told in answer.text


def test_the_client_prints_what_the_readme_shows(program: Program, tmp_path: Path) -> None:
    other = tmp_path / "none.wav"
    command = [sys.executable, str(EXAMPLE / "client.py"), str(SPEECH.relative_to(ROOT)), str(other)]
    done = subprocess.run([*command, "--url", program.url], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, f"{other}: No such file or directory\n")
    assert f"```\n{done.stdout}```" in (EXAMPLE / "README.md").read_text()


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("transcribe", program, tmp_path)
