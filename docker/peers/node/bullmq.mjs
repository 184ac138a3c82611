// BullMQ. `node bullmq.mjs publish` or `node bullmq.mjs work`.

import fs from "node:fs";
import path from "node:path";
import { Queue, Worker } from "bullmq";

const { REDIS_PORT, PEERS_QUEUE, PEERS_JOBS, PEERS_TALLY, PEERS_CONCURRENCY } = process.env;
const connection = { host: "127.0.0.1", port: Number(REDIS_PORT) };
const CHUNK = 1000;

const job = (n) => ({
  name: "work",
  data: { n, to: `user-${n}@example.org`, padding: "x".repeat(140) },
  // Retries as it would have them in production; none by default. What is done is not kept.
  opts: { attempts: 5, backoff: { type: "exponential", delay: 1000 }, removeOnComplete: true },
});

async function publish(jobs) {
  const queue = new Queue(PEERS_QUEUE, { connection });
  await queue.waitUntilReady();
  const began = performance.now();
  for (let next = 0; next < jobs; next += CHUNK) {
    const chunk = Array.from({ length: Math.min(CHUNK, jobs - next) }, (_, n) => job(next + n));
    await queue.addBulk(chunk); // answered when Redis has taken them
  }
  console.log(JSON.stringify({ seconds: (performance.now() - began) / 1000 }));
  await queue.close();
}

function work() {
  const file = fs.openSync(path.join(PEERS_TALLY, String(process.pid)), "w");
  const record = new BigUint64Array(2); // jobs that ran, and the sum of their numbers
  setInterval(() => fs.writeSync(file, record, 0, 16, 0), 10).unref();
  const worker = new Worker(
    PEERS_QUEUE,
    async (job) => {
      record[0] += 1n;
      record[1] += BigInt(job.data.n);
    },
    { connection, concurrency: Number(PEERS_CONCURRENCY) },
  );
  process.once("SIGTERM", async () => {
    await worker.close();
    fs.writeSync(file, record, 0, 16, 0);
    process.exit();
  });
}

if (process.argv[2] === "publish") await publish(Number(PEERS_JOBS));
else work();
