// node worker.js REDIS-URL PROCESSES CONCURRENCY QUEUES: BullMQ's workers, counting into $BENCH_COUNTER.
"use strict";

const { fork } = require("child_process");
const fs = require("fs");
const { Worker } = require("bullmq");
const { Slot, connection } = require("./job");

const [url, processes, concurrency, queues] = process.argv.slice(2);

function main() {
  const file = fs.openSync(process.env.BENCH_COUNTER, "r+");
  const taken = Buffer.alloc(8);
  taken.writeBigInt64LE(BigInt(processes));
  fs.writeSync(file, taken, 0, 8, 0);
  for (let number = 1; number < Number(processes); number++) {
    fork(__filename, process.argv.slice(2), { env: { ...process.env, BENCH_SLOT: String(number) } });
  }
  work(0);
}

function work(number) {
  const slot = new Slot(process.env.BENCH_COUNTER, number);
  for (let queue = 0; queue < Number(queues); queue++) {
    const name = queue === 0 ? "bench" : `bench${queue}`;
    new Worker(name, async (job) => slot.run(job.data), {
      connection: connection(url),
      concurrency: Number(concurrency),
      removeOnComplete: { count: 0 },
    });
  }
}

if (process.env.BENCH_SLOT) work(Number(process.env.BENCH_SLOT));
else main();
