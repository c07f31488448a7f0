// node producer.js REDIS-URL PAYLOAD one|many|fill|steady|later COUNT [SECONDS]: sends jobs, and prints how long
// that took, in seconds. `one` and `many` warm up before; `many` sends a thousand a call, and so does `fill`;
// `steady` sends one every SECONDS, `later` jobs that are due in SECONDS.
"use strict";

const { Queue } = require("bullmq");
const { connection, now } = require("./job");

const [url, json, how, many, wait] = process.argv.slice(2);
const payload = JSON.parse(json);
const count = Number(many);
const seconds = Number(wait || 0);
const queue = new Queue("bench", { connection: connection(url) });

const batch = (size, opts, data) => Array.from({ length: size }, () => ({ name: "bench", data, opts }));

const ways = {
  async one() {
    for (let n = 0; n < 50; n++) await queue.add("bench", payload);
    const started = now();
    for (let n = 0; n < count; n++) await queue.add("bench", payload);
    return now() - started;
  },
  async many() {
    await queue.addBulk(batch(50, {}, payload));
    return ways.fill();
  },
  async fill() {
    const jobs = batch(1000, {}, payload);
    const started = now();
    for (let n = 0; n < count; n += 1000) await queue.addBulk(jobs.slice(0, count - n));
    return now() - started;
  },
  async later() {
    const started = now();
    for (let n = 0; n < count; n += 1000) {
      const data = { ...payload, sent: now() + seconds };
      await queue.addBulk(batch(Math.min(1000, count - n), { delay: seconds * 1000 }, data));
    }
    return now() - started;
  },
  async steady() {
    const started = now();
    for (let n = 1; n <= count; n++) {
      const pause = (started + n * seconds - now()) * 1000;
      if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
      await queue.add("bench", { ...payload, sent: now() });
    }
    return now() - started;
  },
};

ways[how]().then(async (took) => {
  console.log(took);
  await queue.close();
});
