// Reads a number of borrows from each line of its input, and answers with the nanoseconds that one took.
"use strict";
const { Pool } = require("pg");
const readline = require("node:readline");

const [url, statement, timeout] = process.argv.slice(2);
const pool = new Pool({ connectionString: url, max: 1, ssl: false, query_timeout: Number(timeout), idleTimeoutMillis: 0 });

async function once() {
  const client = await pool.connect();
  try {
    await client.query(statement);
  } finally {
    client.release();
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await once();
    await once();
    const began = process.hrtime.bigint();
    for (let left = Number(line); left > 0; left--) await once();
    console.log(String((process.hrtime.bigint() - began) / BigInt(line)));
  }
  await pool.end();
}

main();
