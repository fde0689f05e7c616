"""The page at /: a chat at several strengths side by side, of files that lie here and load nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

HERE = Path(__file__).parent
TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_page(app: FastAPI) -> None:
    """Add the page and its parts to a server."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(HERE / "index.html", media_type="text/html; charset=utf-8", headers=HEADERS)

    for name, kind in TYPES.items():
        app.get(f"/playground/{name}", include_in_schema=False)(_part(name, kind))


def _part(name: str, kind: str) -> Callable[[], Awaitable[FileResponse]]:
    """A route of one file; it takes no parameters, since FastAPI reads each of them from the query."""

    async def part() -> FileResponse:
        return FileResponse(HERE / name, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return part
