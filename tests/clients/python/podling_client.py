"""Calls an agent through the gateway, and directly with its certificate pinned. Uses only grpcio.

usage: podling_client.py GENERATED GATEWAY TOKEN WORKSPACE AGENT AGENT_TOKEN FINGERPRINT

AGENT is unix:PATH or ipv4:ADDRESS:PORT.
"""

import hashlib
import socket
import ssl
import sys

generated, gateway, token, workspace, agent, agent_token, fingerprint = sys.argv[1:]
sys.path.insert(0, generated)

import grpc  # noqa: E402
from podling.agent.v1 import processes_pb2, processes_pb2_grpc  # noqa: E402
from podling.agent.v1 import terminals_pb2, terminals_pb2_grpc  # noqa: E402
from podling.control.v1 import workspaces_pb2, workspaces_pb2_grpc  # noqa: E402


def pinned_certificate():
    """Returns the agent's certificate. Fails if its fingerprint differs from that of the control plane."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    kind, _, address = agent.partition(":")
    if kind == "unix":
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(30)
        raw.connect(address)
    else:
        host, _, port = address.rpartition(":")
        raw = socket.create_connection((host, int(port)), timeout=30)
    with context.wrap_socket(raw, server_hostname="podling-agent") as tls:
        der = tls.getpeercert(binary_form=True)
    found = hashlib.sha256(der).hexdigest()
    assert found == fingerprint, f"fingerprint is {found} instead of {fingerprint}"
    return ssl.DER_cert_to_PEM_cert(der).encode()


def work(channel, metadata, where):
    """Runs a command, types into a terminal, and provokes an error. Checks all results."""
    processes = processes_pb2_grpc.ProcessesStub(channel)
    command = processes_pb2.Command(argv=["sh", "-c", "echo out; echo err >&2; exit 3"])
    ran = processes.Run(processes_pb2.RunRequest(command=command), metadata=metadata, timeout=60)
    assert (ran.stdout, ran.stderr, ran.exit.code) == (b"out\n", b"err\n", 3), ran

    terminals = terminals_pb2_grpc.TerminalsStub(channel)
    request = terminals_pb2.CreateTerminalRequest(argv=["sh", "-c", "read line; echo got-$line; exit 4"])
    terminal = terminals.Create(request, metadata=metadata, timeout=60).terminal

    def requests():
        yield terminals_pb2.AttachRequest(
            open=terminals_pb2.AttachOpen(
                terminal_id=terminal.id,
                client_id="python-" + where,
                **{"from": terminals_pb2.From(oldest=terminals_pb2.FromOldest())},
            )
        )
        typed = terminals_pb2.Input(epoch=terminal.epoch, data=b"wombat\r", kind=terminals_pb2.INPUT_KIND_USER)
        yield terminals_pb2.AttachRequest(input=typed)

    output = b""
    for answer in terminals.Attach(requests(), metadata=metadata, timeout=60):
        if answer.frame.WhichOneof("frame") == "data":
            assert answer.frame.offset == len(output)
            output += answer.frame.data
        if answer.frame.WhichOneof("frame") == "exit":
            assert answer.frame.exit.code == 4 and answer.frame.exit.final_offset == len(output)
            break
    assert b"got-wombat" in output, output

    try:
        bad = terminals_pb2.CreateTerminalRequest(argv=["no-such-program"])
        terminals.Create(bad, metadata=metadata, timeout=60)
        raise AssertionError("a missing program was started")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert "no-such-program" in error.details(), error
    print("worked", where)


with grpc.insecure_channel(gateway) as channel:
    metadata = [("authorization", "Bearer " + token)]
    stub = workspaces_pb2_grpc.WorkspacesStub(channel)
    found = stub.Get(workspaces_pb2.GetWorkspaceRequest(workspace=workspace), metadata=metadata, timeout=60)
    assert found.workspace.agent.key_fingerprint == fingerprint
    work(channel, metadata + [("podling-workspace", workspace)], "through the gateway")

credentials = grpc.ssl_channel_credentials(root_certificates=pinned_certificate())
options = [("grpc.ssl_target_name_override", "podling-agent"), ("grpc.default_authority", "podling-agent")]
with grpc.secure_channel(agent, credentials, options) as channel:
    work(channel, [("authorization", "Bearer " + agent_token)], "at the agent")
