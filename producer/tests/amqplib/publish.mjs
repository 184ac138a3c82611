// Publishes jobs by the wire contract alone: publish.mjs NAMESPACE QUEUE, broker in AMQP_URL.
//
// Needs amqplib (npm ci in this folder). Knows nothing of Forebay but docs/wire.md: the exchange is
// the namespace, the routing key the queue, the property `type` the kind, the body JSON.

import amqp from "amqplib";

class Unroutable extends Error {}

/** Exchange and routing key of a delay: its tenths of a second in 28 binary digits. */
function ladder(namespace, queue, milliseconds) {
  const digits = Math.ceil(milliseconds / 100).toString(2);
  const level = String(digits.length - 1).padStart(2, "0");
  const key = [...digits.padStart(28, "0")].join(".");
  return [`${namespace}.delay.${level}`, `${key}.${queue}`];
}

/** Mandatory and confirmed: done when it is stored, fails when no queue is bound. */
function publisher(channel) {
  // The broker returns a message before it confirms it.
  const returned = new Set();
  channel.on("return", ({ properties }) => returned.add(properties.messageId));
  return (exchange, key, body, about) =>
    new Promise((resolve, reject) => {
      const options = { ...about, mandatory: true };
      channel.publish(exchange, key, Buffer.from(JSON.stringify(body)), options, (refused) => {
        if (refused) return reject(refused);
        if (returned.delete(about.messageId)) return reject(new Unroutable(key));
        console.log(exchange, key);
        resolve();
      });
    });
}

const [namespace, queue] = process.argv.slice(2);
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
const publish = publisher(channel);
const job = { type: "note.take", contentType: "application/json", deliveryMode: 2 };

const headers = { "forebay-attempt": 1, "forebay-published-at": Date.now(), tenant: "acme" };
await publish(namespace, queue, { n: 1 }, { ...job, messageId: "from-node-1", headers });

const [exchange, key] = ladder(namespace, queue, 700);
await publish(exchange, key, { n: 2 }, { ...job, messageId: "from-node-2-later" });

await publish(namespace, queue, { n: 3 }, { messageId: "from-node-3-bare" });

try {
  await publish(namespace, "nowhere", { n: 4 }, { ...job, messageId: "from-node-4-lost" });
} catch (error) {
  if (!(error instanceof Unroutable)) throw error;
  console.log(`unroutable: ${error.message}`);
}
await connection.close();
