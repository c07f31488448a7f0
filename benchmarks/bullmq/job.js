// The job on BullMQ. Counts as benchmarks/job.py does, in a slot of the same file; since Node has no shared
// memory, the slot is written every few milliseconds instead of at every job.
"use strict";

const fs = require("fs");

const LATENCIES = 1024;
const SLOT = 8 + LATENCIES * 8;

const now = () => (performance.timeOrigin + performance.now()) / 1000;

class Slot {
  constructor(path, number) {
    this.file = fs.openSync(path, "r+");
    this.offset = 8 + number * SLOT;
    this.buffer = Buffer.alloc(SLOT);
    this.count = 0;
    this.latencies = 0;
    this.written = 0;
    setInterval(() => this.write(), 5).unref();
  }

  run(job) {
    if (job.sent) {
      this.buffer.writeDoubleLE(now() - job.sent, 8 + (this.latencies % LATENCIES) * 8);
      this.latencies += 1;
    }
    this.count += 1;
  }

  write() {
    if (this.count === this.written) return;
    this.buffer.writeBigInt64LE(BigInt(this.count), 0);
    // Latencies first: whoever sees the count finds them.
    if (this.latencies) fs.writeSync(this.file, this.buffer, 8, SLOT - 8, this.offset + 8);
    fs.writeSync(this.file, this.buffer, 0, 8, this.offset);
    this.written = this.count;
  }
}

const connection = (url) => {
  const { hostname, port } = new URL(url);
  return { host: hostname, port: Number(port), maxRetriesPerRequest: null };
};

module.exports = { Slot, connection, now };
