// Functions in JavaScript for `serve` in forebay.toml: one process takes many jobs at once.
//
//     import { Reject, job, serve } from "./forebay-serve.mjs";
//
//     job("price.quote", async (payload, cx) => {
//       if (!payload.sku) throw new Reject("a quote needs a sku"); // can never succeed: dead letter
//       const price = await fetch(url, { signal: cx.signal });     // any other error: tried again
//       return { price: await price.json() };
//     });
//
//     serve();
//
// Copy this file beside yours; it needs nothing but Node 18. The protocol is docs/serve.md.

import { createWriteStream } from "node:fs";
import { createInterface } from "node:readline";

const LARGEST_RESULT = 16 * 1024 * 1024;
const functions = new Map();
const batches = new Map();
const running = new Map();
let answers;

/** Registers a function(payload, cx), async or not, for jobs of a kind. */
export function job(kind, run) {
  functions.set(kind, run);
}

/**
 * Registers a function(items, cx), async or not, for jobs that come in batches: the function in
 * forebay.toml has `batch = { size = 100 }`. Each item has payload, id, attempt, … All are done when
 * it ends, but those whose `error` it has set (an Error or a text; Reject, RetryAfter and Defer mean
 * what they mean when they are thrown). Set `result` to answer a caller. An error fails them all.
 */
export function batch(kind, run) {
  batches.set(kind, run);
}

/** The job can never succeed: it becomes a dead letter now. */
export class Reject extends Error {
  name = "Reject";
  wish = { reject: true };
}

/** Try again after so many seconds, as long as attempts are left. */
export class RetryAfter extends Error {
  name = "RetryAfter";
  constructor(seconds, why = "to be tried again later") {
    super(why);
    this.wish = { retry_after: seconds };
  }
}

/** Put the job off by so many seconds without using an attempt, at most 20 times in a row. */
export class Defer extends Error {
  name = "Defer";
  constructor(seconds, why = "put off") {
    super(why);
    this.wish = { defer: seconds };
  }
}

/** What a function is told besides the payload: run, id, kind, queue, attempt, redelivered, … */
class Context {
  #abort = new AbortController();
  constructor({ payload, jobs, type, deadline_ms, ...about }) {
    Object.assign(this, about);
    this.deadline = new Date(deadline_ms);
    /** Aborted when the result no longer matters: timeout or shutdown. */
    this.signal = this.#abort.signal;
  }
  /** Milliseconds until the deadline. */
  remaining() {
    return Math.max(0, this.deadline - Date.now());
  }
  /** Notes how far the job is. */
  progress(value) {
    say({ run: this.run, progress: value ?? null });
  }
  /** Tells a channel something, for whoever follows it. */
  emit(channel, event, data) {
    say({ run: this.run, emit: { channel, event, data: data ?? null } });
  }
  cancel() {
    this.#abort.abort(new Error("the worker no longer waits for this run"));
  }
}

/** Takes jobs until the worker closes standard input, then finishes what is running. */
export function serve() {
  answers = createWriteStream("", { fd: 3 });
  const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
  lines.on("line", (line) => {
    const message = JSON.parse(line);
    if (message.type === "job" || message.type === "batch") take(message);
    if (message.type === "cancel") running.get(message.run)?.cx.cancel();
  });
  lines.on("close", async () => {
    await Promise.allSettled([...running.values()].map(({ ended }) => ended));
    answers.end(() => process.exit());
  });
  say({ type: "ready", protocol: 1, jobs: Number(process.env.FOREBAY_SERVE_JOBS) });
}

function take(message) {
  const cx = new Context(message);
  const work = message.type === "batch" ? answerBatch(message.jobs, cx) : call(functions, message.payload, cx);
  const ended = answer(work, cx).finally(() => running.delete(cx.run));
  running.set(cx.run, { cx, ended });
}

async function answer(work, cx) {
  try {
    say({ run: cx.run, ok: (await work) ?? null });
  } catch (error) {
    if (!error?.wish) console.error(error);
    say({ run: cx.run, ...failure(error) });
  }
}

async function answerBatch(items, cx) {
  await call(batches, items, cx);
  const failed = items.filter((item) => item.error != null);
  const answered = items.filter((item) => item.result !== undefined);
  return {
    batchItemFailures: failed.map((item) => ({ itemIdentifier: item.id, ...failure(item.error) })),
    results: Object.fromEntries(answered.map((item) => [item.id, item.result])),
  };
}

async function call(map, payload, cx) {
  const run = map.get(cx.kind);
  const what = map === batches ? "batches of kind" : "kind";
  if (!run) throw new Error(`this program has no function for ${what} ${cx.kind}`);
  return run(payload, cx);
}

function failure(error) {
  return { error: String(error), ...error?.wish };
}

function say(message) {
  const line = JSON.stringify(message);
  if (Buffer.byteLength(line) > LARGEST_RESULT) throw new Reject("a result is larger than 16 MiB");
  answers.write(line + "\n");
}
