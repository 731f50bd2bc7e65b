// Cases of gRPC for Node, on messages that it makes of protos/ itself: node_client.js GRPC PROTOS -> JSON.
// The model `held` is busy.
"use strict";
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const load = (file) =>
  grpc.loadPackageDefinition(
    loader.loadSync(`headrace/rpc/${file}`, { includeDirs: [protos], keepCase: true, longs: Number, defaults: true }),
  );
const { GRPCInferenceService } = load("inference.proto").inference;
const { Health } = load("health.proto").grpc.health.v1;
const options = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };
const client = new GRPCInferenceService(address, grpc.credentials.createInsecure(), options);
const health = new Health(address, grpc.credentials.createInsecure());

const seconds = (n) => ({ deadline: new Date(Date.now() + n * 1000) });

const request = (model, values, id = "", parameters = {}) => ({
  model_name: model,
  id,
  parameters,
  inputs: [{ name: "x", datatype: "FP32", shape: [1, values.length] }],
  raw_input_contents: [Buffer.from(new Float32Array(values).buffer)],
});

const row = (number) => [number, 2, 3, 4];

const values = (reply) => {
  const raw = reply.raw_output_contents[0];
  return Array.from({ length: raw.length / 4 }, (_, index) => raw.readFloatLE(4 * index));
};

const call = (name, message, options = seconds(20), of = client) =>
  new Promise((resolve, reject) => of[name](message, options, (error, reply) => (error ? reject(error) : resolve(reply))));

const failure = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const trailers = error.metadata.getMap();
    return [grpc.status[error.code], error.details, trailers["headrace-reason"] ?? null];
  }
  return "no failure";
};

const cases = {
  async state() {
    const metadata = await call("ModelMetadata", { name: "pair" });
    const config = await call("ModelConfig", { name: "pair" });
    return {
      live: (await call("ServerLive", {})).live,
      ready: (await call("ModelReady", { name: "pair" })).ready,
      inputs: metadata.inputs.map((one) => [one.name, one.datatype, one.shape]),
      max_batch_size: config.config.max_batch_size,
    };
  },

  async health() {
    const known = await call("Check", { service: "inference.GRPCInferenceService" }, seconds(20), health);
    const watch = health.Watch({ service: "" }, seconds(20));
    const first = await new Promise((resolve, reject) => watch.once("data", resolve).once("error", reject));
    watch.on("error", () => {}); // it is cancelled
    watch.cancel();
    return [known.status, first.status, await failure(call("Check", { service: "nobody" }, seconds(20), health))];
  },

  async unary() {
    const reply = await call("ModelInfer", request("echo_fp32", row(1), "7"));
    return [reply.id, reply.model_version, reply.outputs[0].shape, values(reply)];
  },

  async typed_contents() {
    const message = request("echo_fp32", row(1));
    message.raw_input_contents = [];
    message.inputs[0].contents = { fp32_contents: row(5) };
    return values(await call("ModelInfer", message));
  },

  async large() {
    const sent = Array.from({ length: 2_000_000 }, (_, index) => index % 1000);
    const got = values(await call("ModelInfer", request("free", sent)));
    return got.length === sent.length && got.every((value, index) => value === 3 * sent[index]);
  },

  async errors() {
    return [
      await failure(call("ModelInfer", request("nobody", row(1)))),
      await failure(call("ModelInfer", request("echo_fp32", [1, 2, 3]))),
      await failure(call("ModelInfer", request("held", [1], "", { timeout: { int64_param: 100_000 } }))),
    ];
  },

  async deadline() {
    return (await failure(call("ModelInfer", request("held", [1]), { deadline: new Date(Date.now() + 100) })))[0];
  },

  async cancellation() {
    return new Promise((resolve) => {
      const sent = client.ModelInfer(request("held", [1]), seconds(20), (error) => resolve(grpc.status[error.code]));
      setTimeout(() => sent.cancel(), 100);
    });
  },

  async concurrent() {
    const calls = Array.from({ length: 500 }, (_, n) => call("ModelInfer", request("echo_fp32", row(n), String(n))));
    return (await Promise.all(calls)).map((reply) => [Number(reply.id), values(reply)[0]]);
  },

  async stream() {
    const stream = client.ModelStreamInfer(seconds(20));
    const got = [];
    const ended = new Promise((resolve, reject) => stream.on("end", resolve).on("error", reject));
    stream.on("data", ({ error_message, infer_response }) =>
      got.push(error_message || [infer_response.id, values(infer_response)[0]]),
    );
    for (let n = 0; n < 100; n++) stream.write(request(n === 50 ? "nobody" : "echo_fp32", row(n), String(n)));
    stream.end();
    await ended;
    return got;
  },

  async stream_that_is_cancelled() {
    const stream = client.ModelStreamInfer(seconds(20));
    const first = new Promise((resolve) => stream.once("data", resolve));
    const error = new Promise((resolve) => stream.on("error", resolve));
    stream.write(request("echo_fp32", row(1)));
    await first;
    stream.write(request("held", [1]));
    stream.cancel();
    return grpc.status[(await error).code];
  },
};

(async () => {
  const report = { version: require("@grpc/grpc-js/package.json").version };
  for (const [name, run] of Object.entries(cases)) {
    report[name] = await run().catch((error) => String(error));
  }
  console.log(JSON.stringify(report));
  client.close();
  health.close();
})();
