"""Speech in, text out: a WAV file is uploaded as a form, and PocketSphinx says which words it hears, and when.

    python examples/transcribe/server.py --port 8000
    curl localhost:8000/inference -F audio=@speech.wav
    python examples/transcribe/client.py speech.wav

Whisper, or any other model of speech, does in the place of PocketSphinx: what it takes are samples.
"""

import io
import wave
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from pocketsphinx import Decoder

from mosec_asgi import Server, ValidationError, Worker
from mosec_asgi.mixin import File, MultipartMixin

# Samples a second, as the model has learned them.
RATE = 16_000
# Frames of the decoder's a second.
FRAMES = 100
LONGEST_SECONDS = 60


@dataclass
class Upload:
    """A form with a recording."""

    audio: File


class Word(TypedDict):
    """A word, and the seconds from the beginning between which it is heard."""

    word: str
    start: float
    end: float


class Transcript(TypedDict):
    """What was said."""

    text: str
    seconds: float
    words: list[Word]


class Decode(MultipartMixin, Worker):
    """Read the form, and the file in it: any rate and number of channels become 16 kHz in one."""

    def forward(self, data: Upload) -> bytes:
        """Return the samples, 16 bits each."""
        try:
            with wave.open(io.BytesIO(data.audio.data)) as file:
                rate, width, channels, count = (
                    file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes(),
                )  # fmt: skip
                if width != 2 or not 8000 <= rate <= 192_000 or not 0 < count <= LONGEST_SECONDS * rate:
                    raise ValidationError(
                        f"send 16 bits a sample, 8000 to 192000 samples a second, {LONGEST_SECONDS} s at most"
                    )
                samples = np.frombuffer(file.readframes(count), "<i2").reshape(-1, channels).mean(axis=1)
        except (wave.Error, EOFError, ValueError) as error:
            raise ValidationError(f"the file is no WAV: {error}") from error
        times = np.arange(0, len(samples), rate / RATE)
        resampled: bytes = np.interp(times, np.arange(len(samples)), samples).astype("<i2").tobytes()
        return resampled


class Transcribe(Worker):
    """Hear the words."""

    example = bytes(2 * RATE)

    def __init__(self) -> None:
        self.decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def forward(self, data: bytes) -> Transcript:
        """Return what is said in a recording."""
        self.decoder.start_utt()
        self.decoder.process_raw(data, full_utt=True)
        self.decoder.end_utt()
        # What is no word, such as silence, stands in brackets; a word that is said in another way has a number.
        heard = [part for part in self.decoder.seg() or () if part.word[0] not in "<["]
        words: list[Word] = [
            {
                "word": part.word.partition("(")[0],
                "start": part.start_frame / FRAMES,
                "end": (part.end_frame + 1) / FRAMES,
            }
            for part in heard
        ]
        return {"text": " ".join(each["word"] for each in words), "seconds": len(data) / 2 / RATE, "words": words}


server = Server(timeout=120_000)
server.append_worker(Decode)
server.append_worker(Transcribe, num=2)

if __name__ == "__main__":
    server.run()
