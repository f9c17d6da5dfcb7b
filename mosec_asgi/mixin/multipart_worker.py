"""Forms from the client: fields and files, as a page's `<form>` or `curl -F` sends them."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosec_asgi.annotations import forward_input_type
from mosec_asgi.errors import ClientError, DecodingError, DefinitionError, ValidationError
from mosec_asgi.mixin.library import NeedsLibrary, load
from mosec_asgi.mixin.pydantic_worker import input_adapter, told
from mosec_asgi.mixin.url_encoded import read_pairs
from mosec_asgi.worker import Worker

FORM_DATA = "multipart/form-data"
URL_ENCODED = "application/x-www-form-urlencoded"
# As the OpenAPI document has a file of a form.
_FILE = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# In the place of the library's, which has a warning for each form that is none: as many as clients want, and beside the
# service's log. What is wrong is the client's answer.
_UNHEARD = logging.Logger("unheard", logging.CRITICAL + 1)


class FormTooLarge(ClientError):
    """A form has more parts, or a larger one, than its worker takes: 413."""

    code = 413
    msg = "form too large"


class NoForm(ClientError):
    """The body is of another type than a form: 415."""

    code = 415
    msg = "no form"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a form.

    Attributes:
        filename: the last part of the name that the client gives it, be it a path; empty where that is no name. For
            people to read: it is still the client's choice.
        content_type: what the client says that it is; empty where it says nothing.
        data: its content.
    """

    filename: str
    content_type: str
    data: bytes

    @classmethod
    def __get_pydantic_core_schema__(cls, _kind: Any, _handler: Any) -> Any:
        """Have pydantic take files alone for a file, in what a form is checked against."""
        return load("pydantic_core").core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: Any, _handler: Any) -> dict[str, Any]:
        """Return what a file is in the OpenAPI document: a file picker on the Swagger page."""
        return dict(_FILE)


@dataclass(frozen=True, slots=True)
class Form:
    """A form, as `forward` gets it.

    Attributes:
        parts: all names with their texts and files, in the order in which they were sent.
    """

    parts: Sequence[tuple[str, str | File]] = ()

    @property
    def fields(self) -> dict[str, str]:
        """The texts by name; of a name that is there twice, the last."""
        return {name: value for name, value in self.parts if isinstance(value, str)}

    @property
    def files(self) -> dict[str, File]:
        """The files by name; of a name that is there twice, the last."""
        return {name: value for name, value in self.parts if isinstance(value, File)}

    def all(self, name: str) -> list[str | File]:
        """Return all texts and files of a name, in the order in which they were sent."""
        return [value for other, value in self.parts if other == name]


class MultipartMixin(NeedsLibrary, Worker):
    """Read forms: `class Inference(MultipartMixin, Worker)`; `forward` gets a `Form`, or what it is annotated with.

    That is a dataclass, a TypedDict or a model of pydantic, whose fields are the names of the form: a `File`, a
    `list[File]`, a text, a number, whatever pydantic makes of a text. Pydantic checks it, what does not fit is answered
    422, and the OpenAPI document shows it. A field with a default may be left out or empty.

    Forms are `multipart/form-data`, with files, or `application/x-www-form-urlencoded`, without. All stays in memory:
    the service's `max_request_size` (bytes) bounds a body before this reads it. It is for the first stage of a route,
    and takes the request, whose header says where the parts begin.

    Attributes:
        max_parts: fields and files of a form; beyond them 413.
        max_part_size: bytes of one of them; beyond them 413.
        max_name_size: bytes of a name, or of a file's name; beyond them 413.
        form_files: names of files that the OpenAPI document shows where `forward` takes a `Form`: each is a file picker
            on the Swagger page.
        form_fields: names of texts that it shows there.
    """

    _library = "python_multipart"
    takes_request: bool = True
    req_mime_type: str = FORM_DATA
    max_parts: int = 1000
    max_part_size: int = 10 * 1024 * 1024
    max_name_size: int = 255
    form_files: Sequence[str] = ("file",)
    form_fields: Sequence[str] = ()

    def deserialize(self, data: bytes) -> Any:
        """Decode a form.

        Args:
            data: the body.

        Returns:
            the `Form`, or what `forward` is annotated with.

        Raises:
            ValidationError: it is not what `forward` is annotated with; the text says of each field what is wrong: 422.
            NoForm: the request's content-type is not that of a form: 415.
            FormTooLarge: a limit of the class is exceeded: 413.
            DecodingError: it is no form, as its content-type says, or not all of it: 400.
        """
        return self._checked(self._form(data))

    def _form(self, data: bytes) -> Form:
        header = self.request().headers.get("content-type", "")
        kind, options = load("python_multipart").multipart.parse_options_header(header)
        if kind == URL_ENCODED.encode():
            return self._url_encoded(data)
        if kind != FORM_DATA.encode():
            shown = repr(header[:100]) if header else "missing"
            raise NoForm(f"the content-type must be {FORM_DATA} or {URL_ENCODED}, and is {shown}")
        boundary = options.get(b"boundary")
        if not boundary:
            raise DecodingError(f"the content-type {FORM_DATA} names no boundary; let the client's library write it")
        return _Reader(self, boundary).read(data)

    def _checked(self, item: Any) -> Any:
        """Return a form as `forward` is to have it. `infer` may be given that itself, or plain data for it."""
        shape = _shape(type(self), self._max_batch_size > 1)
        return item if shape is None else shape.checked(item)

    def _url_encoded(self, data: bytes) -> Form:
        if data.count(b"&") >= self.max_parts:
            raise FormTooLarge(f"it has more than {self.max_parts} fields")
        try:
            pairs = read_pairs(data)
        except UnicodeDecodeError as error:
            raise DecodingError(f"the form is not UTF-8: {error.reason}") from error
        for name, value in pairs:
            self._check_name(name)
            self._check_size(len(value.encode()))
        return Form(pairs)

    def _check_name(self, name: str) -> None:
        if len(name.encode()) > self.max_name_size:
            raise FormTooLarge(f"a name is longer than {self.max_name_size} bytes")

    def _check_size(self, size: int) -> None:
        if size > self.max_part_size:
            raise FormTooLarge(f"a part is larger than {self.max_part_size} bytes")

    @classmethod
    def form_content(cls, described: dict[str, Any] | None = None, *, files: bool = True) -> dict[str, Any]:
        """Return the content of a request as the OpenAPI document shows it.

        Args:
            described: the schema of what `forward` is annotated with; None where that is a `Form`.
            files: whether there are files in it.
        """
        if described is None:
            properties = {**dict.fromkeys(cls.form_files, _FILE), **dict.fromkeys(cls.form_fields, _TEXT)}
            described, files = {"type": "object", "properties": properties}, bool(cls.form_files)
        kinds = (FORM_DATA,) if files else (FORM_DATA, URL_ENCODED)
        return {kind: {"schema": described} for kind in kinds}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a form is to be.

    Attributes:
        adapter: pydantic's, of what `forward` is annotated with.
        lists: names of which there may be several.
        optional: names that may be left out.
    """

    adapter: Any
    lists: frozenset[str]
    optional: frozenset[str]

    def checked(self, item: Any) -> Any:
        """Return what `forward` is annotated with.

        Args:
            item: a form, that itself, or plain data for it.

        Raises:
            ValidationError: it does not fit.
        """
        try:
            return self.adapter.validate_python(self._values(item) if isinstance(item, Form) else item)
        except load("pydantic").ValidationError as error:
            raise ValidationError(told(error)) from error

    def _values(self, form: Form) -> dict[str, Any]:
        """Return what a form holds by name; of a name that is there twice the last, where there may be but one."""
        values: dict[str, Any] = {}
        for name, value in form.parts:
            # A page sends a field that nobody has filled in as an empty text.
            if value == "" and name in self.optional:
                continue
            if name in self.lists:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
        return values


@functools.cache
def _shape(worker: type[Worker], batched: bool) -> _Shape | None:
    """Return what a worker's forms are to be; None for a `Form` as it is."""
    annotation = forward_input_type(worker, batched)
    if annotation in (Any, Form):
        return None
    load("pydantic")
    adapter = input_adapter(worker, batched)
    described = adapter.json_schema()
    if "properties" not in described:
        raise DefinitionError(
            f"{worker.__qualname__}.forward takes forms, and is annotated with {annotation!r}; annotate it with "
            "`Form`, or with a dataclass, a TypedDict or a model of pydantic whose fields are those of the form"
        )
    fields = described["properties"]
    lists = frozenset(name for name, field in fields.items() if _is_list(field))
    return _Shape(adapter, lists, frozenset(fields) - frozenset(described.get("required", ())))


def _is_list(field: dict[str, Any]) -> bool:
    return field.get("type") == "array" or any(map(_is_list, field.get("anyOf", ())))


class _Reader:
    """Reads one form; hears from the library's parser what it finds."""

    def __init__(self, limits: MultipartMixin, boundary: bytes) -> None:
        self._limits = limits
        self._boundary = boundary
        self._parts: list[tuple[str, str | File]] = []
        self._begun = 0
        self._ended = False
        # Of the part that is read just now: its headers, and its content.
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data = bytearray()

    def read(self, data: bytes) -> Form:
        library = load("python_multipart")
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        callbacks = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        try:
            parser = library.MultipartParser(self._boundary, callbacks)
            parser.logger = _UNHEARD
            parser.write(data)
            parser.finalize()
        except library.exceptions.FormParserError as error:
            raise DecodingError(f"the body is no {FORM_DATA}: {error}") from error
        if not self._ended:
            raise DecodingError("the form ends before its last boundary: a part of it is missing")
        return Form(self._parts)

    def _part_begin(self) -> None:
        self._begun += 1
        if self._begun > self._limits.max_parts:
            raise FormTooLarge(f"it has more than {self._limits.max_parts} parts")
        self._headers = {}
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._limits._check_size(len(self._data) + end - start)
        self._data += memoryview(data)[start:end]

    def _part_end(self) -> None:
        parse = load("python_multipart").multipart.parse_options_header
        kind, options = parse(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise DecodingError('a part of the form has no name: its content-disposition must be form-data; name="..."')
        name = options[b"name"].decode(errors="replace")
        self._limits._check_name(name)
        if b"filename" not in options:
            self._parts.append((name, self._text(name)))
            return
        given = options[b"filename"].decode(errors="replace")
        self._limits._check_name(given)
        # Of a page's field in which no file was chosen there is a part all the same.
        if given or self._data:
            content_type = self._headers.get(b"content-type", b"").decode("latin-1")
            self._parts.append((name, File(_last_part(given), content_type, bytes(self._data))))

    def _text(self, name: str) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError as error:
            raise DecodingError(f"the field {name!r} of the form is not UTF-8: {error.reason}") from error

    def _end(self) -> None:
        self._ended = True


def _last_part(filename: str) -> str:
    """Return what a client calls a file without the folders around it, of whatever system they are."""
    name = _CONTROL.sub("", re.split(r"[/\\]", filename)[-1]).strip()
    return "" if name in (".", "..") else name
