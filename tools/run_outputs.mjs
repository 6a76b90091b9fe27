// run_outputs.py for onnxruntime-web under node, in WebAssembly: node run_outputs.mjs FOLDER_WITH_NODE_MODULES jobs.json
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const ort = createRequire(resolve(process.argv[2], "package.json"))("onnxruntime-web");
ort.env.logLevel = "fatal";
ort.env.wasm.numThreads = 1;
const arrays = { float32: Float32Array, uint8: Uint8Array, int64: BigInt64Array };

for (const job of JSON.parse(readFileSync(process.argv[3]))) {
  const session = await ort.InferenceSession.create(readFileSync(job.model), { executionProviders: ["wasm"] });
  const feeds = {};
  for (const [name, input] of Object.entries(job.inputs)) {
    const bytes = Uint8Array.from(readFileSync(input.file)); // a copy that begins at offset 0
    feeds[name] = new ort.Tensor(input.type, new arrays[input.type](bytes.buffer), input.shape);
  }
  const outputs = await session.run(feeds);
  const parts = session.outputNames.map((name) => outputs[name].data);
  writeFileSync(job.output, Buffer.concat(parts.map((data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength))));
}
