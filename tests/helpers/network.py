"""Who answers: what this process and those it started listen on, and what a Ray session tells whom."""

import contextlib

import grpc
import psutil
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from cifar_ray.distributed.session import ANSWER_S


def listening() -> set[tuple[str, int]]:
    """Addresses and ports that this process and those it started listen on."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections(kind="inet"):
                if one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                    found.add((one.laddr.ip.removeprefix("::ffff:"), one.laddr.port))
    return found


def nodes_told(address: str, *tokens: str) -> int | grpc.StatusCode:
    """How many nodes the server of a session tells somebody who has these tokens; else why it does not."""
    metadata = [("authorization", f"Bearer {token}") for token in tokens]
    with grpc.insecure_channel(address) as channel:
        try:
            stub = NodeInfoGcsServiceStub(channel)
            return len(stub.GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=ANSWER_S, metadata=metadata).node_info_list)
        except grpc.RpcError as error:
            return error.code()
