// Tests the official gRPC-web client from npm through the gateway, in Node: unary calls, a stream, and
// errors with reasons.
//
// usage: node web.mjs URL TOKEN WORKSPACE

import assert from "node:assert/strict";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { createGrpcTransport, createGrpcWebTransport as createNodeTransport } from "@connectrpc/connect-node";
import { Terminals, InputKind } from "./gen/podling/agent/v1/terminals_pb.js";
import { Processes } from "./gen/podling/agent/v1/processes_pb.js";
import { Workspaces } from "./gen/podling/control/v1/workspaces_pb.js";
import { Reason } from "./gen/podling/v1/errors_pb.js";

const [url, token, workspace] = process.argv.slice(2);
const utf8 = new TextDecoder();

const addMetadata = (next) => (request) => {
  request.header.set("authorization", `Bearer ${token}`);
  request.header.set("podling-workspace", workspace);
  return next(request);
};

async function work(name, transport) {
  const workspaces = createClient(Workspaces, transport);
  const found = await workspaces.get({ workspace });
  assert.equal(found.workspace.id, workspace);

  const processes = createClient(Processes, transport);
  const ran = await processes.run({ command: { argv: ["sh", "-c", "cat; exit 3"] }, stdin: new TextEncoder().encode("fed") });
  assert.equal(utf8.decode(ran.stdout), "fed");
  assert.deepEqual(ran.exit.how, { case: "code", value: 3 });

  const terminals = createClient(Terminals, transport);
  const { terminal } = await terminals.create({
    argv: ["sh", "-c", "stty -opost -echo; echo ready; read line; seq 1 20000; echo got-$line; exit 4"],
  });
  const watch = terminals.watch({
    terminals: [{ terminalId: terminal.id, from: { from: { case: "oldest", value: {} } } }],
    clientId: name,
    creditBytes: 32768,
  });
  let output = "";
  let next = 0n;
  let id;
  let typed = false;
  for await (const { response } of watch) {
    if (response.case === "opened") {
      id = response.value.watchId;
      continue;
    }
    assert.equal(response.case, "frame");
    const { epoch, offset, frame } = response.value;
    if (frame.case === "data") {
      assert.equal(offset, next, "bytes are missing or duplicated");
      next += BigInt(frame.value.length);
      output += utf8.decode(frame.value);
      // The watch may already have ended when its last output is acknowledged.
      await terminals
        .ack({ watchId: id, terminalId: terminal.id, epoch, offset: next })
        .catch((error) => assert.equal(ConnectError.from(error).code, Code.NotFound));
      if (!typed && output.includes("ready\n")) {
        typed = true;
        const data = new TextEncoder().encode("wombat\n");
        const input = { epoch, offset: 0n, data, kind: InputKind.USER };
        const written = await terminals.write({ terminalId: terminal.id, clientId: name, input });
        assert.equal(written.nextOffset, 7n);
      }
    }
    if (frame.case === "exit") {
      assert.deepEqual(frame.value.how, { case: "code", value: 4 });
      assert.equal(frame.value.finalOffset, next);
      break;
    }
  }
  const numbers = Array.from({ length: 20000 }, (_, n) => `${n + 1}\n`).join("");
  assert.ok(output === `ready\n${numbers}got-wombat\n`, "received output differs from printed output");

  const error = await terminals.create({ argv: ["no-such-program"] }).then(
    () => assert.fail("a missing program was started"),
    (error) => ConnectError.from(error),
  );
  assert.equal(error.code, Code.FailedPrecondition);
  const reason = Reason[Reason.PROGRAM_NOT_FOUND];
  assert.ok(error.metadata.get("grpc-status-details-bin"), "the error has no details");
  assert.ok(atob(error.metadata.get("grpc-status-details-bin")).includes(reason), "the details contain no reason");
  console.log("worked", name);
}

const options = { baseUrl: url, useBinaryFormat: true, interceptors: [addMetadata] };
await work("connect-web", createGrpcWebTransport(options));
await work("connect-node gRPC-web over HTTP/1.1", createNodeTransport({ ...options, httpVersion: "1.1" }));
await work("connect-node gRPC over HTTP/2", createGrpcTransport(options));
