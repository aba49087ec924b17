// Classifies images with a bundle's packed model, by onnxruntime-node.
//
//     EDGEFOLD_OPS_LIBRARY=libedgefold_ops.so node classify.js ADDON BUNDLE IMAGE...
//
// ADDON is edgefold_node.node; IMAGE a binary PGM or PPM file of 8 bits, of the model's own size.
"use strict";

const fs = require("fs");
const path = require("path");
const ort = require("onnxruntime-node");

function readImage(file) {
  const data = fs.readFileSync(file);
  const header = /^P([56])\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*(\d+)\s+(?:#.*\s+)*255\s/.exec(data.toString("latin1", 0, 512));
  if (header === null) throw new Error(`${file}: not a binary PGM or PPM file of 8 bits`);
  const [channels, width, height] = [header[1] === "5" ? 1 : 3, Number(header[2]), Number(header[3])];
  const pixels = data.subarray(header[0].length, header[0].length + height * width * channels);
  return new ort.Tensor("uint8", Uint8Array.from(pixels), [1, height, width, channels]);
}

function softmax(logits) {
  const most = Math.max(...logits);
  const terms = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = terms.reduce((a, b) => a + b);
  return terms.map((term) => term / sum);
}

async function main([addon, bundle, ...images]) {
  require(path.resolve(addon)); // from here on every session knows the operators
  const labels = fs.readFileSync(path.join(bundle, "labels.txt"), "utf8").split("\n");
  const model = path.join(bundle, "model.packed.onnx");
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1 });
  for (const file of images) {
    const outputs = await session.run({ [session.inputNames[0]]: readImage(file) });
    const probabilities = softmax(outputs[session.outputNames[0]].data);
    const best = probabilities.indexOf(Math.max(...probabilities));
    console.log(`${labels[best]}\t${probabilities[best].toPrecision(6)}\t${file}`);
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
