// A stock Socket.IO client that does what it is told, a line of JSON at a time, and tells what it
// sees. Arguments: address, library (socket.io-client or oldest), transports.
import readline from "node:readline";

const [address, library, transports] = process.argv.slice(2);
const { io } = await import(library);
const say = (...line) => process.stdout.write(JSON.stringify(line) + "\n");
let socket;

function connect(auth) {
  socket = io(address, {
    auth,
    transports: transports.split(","),
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    forceNew: true,
  });
  socket.on("connect", () => say("connect", socket.io.engine.transport.name));
  socket.on("connect_error", (error) => say("connect_error", error.message));
  socket.on("disconnect", (reason) => say("disconnect", reason));
  for (const name of ["event", "gap", "bye"]) {
    socket.on(name, (...values) => say(name, ...values));
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [order, ...values] = JSON.parse(line);
  if (order === "connect") connect(...values);
  else if (order === "disconnect") socket.disconnect();
  else if (order === "again") socket.connect();
  else if (order === "cut") socket.io.engine.close();
  else if (order === "binary") socket.emit("publish", Buffer.from([1, 2, 3]), (ack) => say("ack", ack));
  else if (order === "flood") {
    const [count, name, value] = values;
    for (let n = 0; n < count; n += 1) socket.emit(name, value, (ack) => say("ack", n, ack));
  } else socket.emit(order, ...values, (ack) => say("ack", ack));
}
socket?.disconnect();
