"""An auth manager with permissions by DAG and by user. Airflow's simple one knows only roles."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

SECRET_DAG = "tracks_secret"


class PerDagAuthManager(SimpleAuthManager):
    """Lets only the admin see the secret DAG, and does not let the guest see any XComs."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, access_entity: Any = None, **kwargs: Any) -> bool:
        if user.get_name() != "admin" and details is not None and details.id == SECRET_DAG:
            return False
        if user.get_name() == "guest" and access_entity is not None and access_entity.name == "XCOM":
            return False
        return super().is_authorized_dag(user=user, details=details, access_entity=access_entity, **kwargs)
