// A worker in JavaScript; forebay.toml beside it says how it is started.

import { setTimeout as sleep } from "node:timers/promises";
import { Defer, Reject, batch, job, serve } from "./forebay-serve.mjs";

const prices = new Map([["nut", 3], ["bolt", 5]]);

job("price.quote", async ({ sku, count = 1 }, cx) => {
  if (!sku) throw new Reject("a quote needs a sku");
  await sleep(20, undefined, { signal: cx.signal }); // ends at once when the run is cancelled
  if (!prices.has(sku)) throw new Defer(10, `no price for ${sku} yet`); // uses no attempt
  console.log(`quoted ${sku} for ${cx.id}`); // becomes a log line
  return { price: prices.get(sku) * count };
});

batch("stock.count", async (items) => {
  for (const item of items) {
    if (!prices.has(item.payload.sku)) item.error = new Reject("no such sku"); // this one alone
  }
  console.log(`counted ${items.length} at once`);
});

serve();
