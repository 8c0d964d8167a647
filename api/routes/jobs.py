"""/v1/jobs."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import ANY
from api.body import StrictRoute
from api.schemas import JobModel
from api.state import Shared

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)


@router.get("/{job_id}", dependencies=[ANY])
def show_job(state: Shared, job_id: str) -> JobModel:
    """Say how far an indexing job is."""
    return JobModel.model_validate(state.jobs.state(job_id))
