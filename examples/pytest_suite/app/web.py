"""The web API."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from asyncdb_guard import DatabaseUnavailableError, GuardedPool

from . import notes


def create_app(pool: GuardedPool) -> FastAPI:
    """The application on a pool. Whoever made the pool closes it."""
    app = FastAPI()

    @app.exception_handler(DatabaseUnavailableError)
    async def unavailable(request: Request, error: DatabaseUnavailableError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(round(error.retry_after + 0.5))}
        return JSONResponse({"detail": "Please try again later."}, 503, headers)

    @app.get("/users/{sub}/notes")
    async def read(sub: str) -> list[str]:
        return await notes.notes_of(pool, sub)

    @app.post("/users/{sub}/notes")
    async def write(sub: str, texts: list[str]) -> int:
        try:
            return await notes.write_notes(pool, sub, texts)
        except notes.UnknownAuthorError:
            raise HTTPException(404, "Nobody has signed up with this sub.") from None

    @app.get("/health")
    async def health() -> dict[str, object]:
        await pool.ping()
        return {"circuit": pool.stats()["circuit"]}

    return app
