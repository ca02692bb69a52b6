"""Where a server is to listen: what the user asked for must be free, everything else is found."""

from __future__ import annotations

from collections.abc import Mapping

from fastserve.server.server_config import LARGEST_PORT, ServerConfig
from fastserve.tools import ports
from fastserve.tools.launcher import LaunchOptions, PortInUse


def launch_options(config: ServerConfig, own_servers: Mapping[str, str]) -> LaunchOptions:
    """Ports that were asked for, and the others next to ``port`` where these are free, else anywhere.

    ``own_servers``: names of this process's servers by HTTP URL. Raises :class:`PortInUse`, and :class:`ToolError` for a host
    that is not this machine.
    """
    address = ports.numeric_address(config.host)
    asked = {"port": config.port, "grpc_port": config.grpc_port, "metrics_port": config.metrics_port}
    for key, port in asked.items():
        if port and not ports.is_free(address, port):
            whose = [name for url, name in own_servers.items() if url.endswith(f":{port}")]
            by = f" by the FastServeServer of {whose[0]} in this process (stop() it)" if whose else ""
            raise PortInUse(f"{key}: {port} is in use on {config.host}{by}; choose another, or 0 for any free one")
    taken = {port for port in asked.values() if port}

    def beside(port: int | None, offset: int) -> int:
        near = config.port + offset
        if port is not None or not config.port:
            return port or 0
        return near if near <= LARGEST_PORT and near not in taken and ports.is_free(address, near) else 0

    return LaunchOptions(
        host=config.host,
        http_port=config.port,
        grpc_port=beside(config.grpc_port, 1),
        metrics_port=beside(config.metrics_port, 2),
        log_file=config.log_file,
    )
