"""Users who may not all see the same: Airflow's own decides by role alone."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

SECRET_DAG = "tracks_secret"


class PerDagAuthManager(SimpleAuthManager):
    """Airflow's simple users, of whom only an admin may see the secret DAG, and the guest no XComs at all."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, access_entity: Any = None, **asked: Any) -> bool:
        if user.get_name() != "admin" and details is not None and details.id == SECRET_DAG:
            return False
        if user.get_name() == "guest" and access_entity is not None and access_entity.name == "XCOM":
            return False
        return super().is_authorized_dag(user=user, details=details, access_entity=access_entity, **asked)
