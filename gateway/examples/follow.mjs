// Publishes a job and follows it to its end, through every loss of the connection.
//   npm install socket.io-client && node follow.mjs report.render '{"id": 7}'
// GATEWAY says where (default http://127.0.0.1:8090), TOKEN who we are.
import { randomUUID } from "node:crypto";
import { io } from "socket.io-client";

const [kind = "report.render", payload = "{}"] = process.argv.slice(2);
const wish = { kind, payload: JSON.parse(payload), options: { key: randomUUID() } };
const { GATEWAY = "http://127.0.0.1:8090", TOKEN } = process.env;
const socket = io(GATEWAY, { auth: TOKEN ? { token: TOKEN } : {} });
let job, last;

// At the first connect and at each later one: with the key, to publish again is to ask again.
socket.on("connect", async () => {
  if (!job) {
    const { ok, error } = await socket.emitWithAck("publish", wish);
    if (error) return end(`${error.message}; ${error.remedy}`, 1);
    [job, last] = [ok.job, ok.token];
  }
  const { ok, error } = await socket.emitWithAck("subscribe", { job, from: last });
  if (error) return end(`${error.message}; ${error.remedy}`, 1);
  last = ok.token;
  if (!ok.recovered) console.error(`some events are gone: ${ok.reason}`);
});
socket.on("event", ({ event, token }) => {
  last = token;
  console.log(JSON.stringify(event));
  if (event.type === "forebay.job.succeeded") end("", 0);
  if (event.type === "forebay.job.dead") end("", 1);
});
socket.on("token", ({ token }) => (last = token));
socket.on("bye", ({ reason, remedy }) => console.error(`sent away: ${reason}; ${remedy ?? ""}`));
socket.on("connect_error", (error) => {
  // The gateway is away, and the client tries again by itself; or it does not let us in.
  if (!socket.active) end(error.message, 1);
});

function end(words, code) {
  if (words) console.error(words);
  process.exitCode = code;
  socket.disconnect();
}
