//! `kv bench`: how many requests a cluster answers, and how fast.

use crate::cli::client::{Client, Repeat};
use crate::cli::failure::Failure;
use crate::cli::output::{Output, bar, table};
use clap::Args;
use rand::RngExt;
use reqwest::Method;
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(Args, Clone)]
pub(crate) struct Bench {
    /// How many clients ask at once, each waiting for its answer before it asks again
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many of a hundred requests read
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// How many keys, each of which begins with bench/
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
}

/// What one client has measured.
#[derive(Default)]
struct Measured {
    reads: Vec<Duration>,
    writes: Vec<Duration>,
    failures: Vec<Failure>,
}

/// What all have measured of one kind of request.
#[derive(Serialize)]
struct Summary {
    kind: &'static str,
    count: usize,
    per_second: f64,
    p50_milliseconds: f64,
    p99_milliseconds: f64,
    max_milliseconds: f64,
}

impl Summary {
    fn new(kind: &'static str, mut times: Vec<Duration>, elapsed: Duration) -> Summary {
        times.sort_unstable();
        let milliseconds = |time: Option<&Duration>| time.map_or(0.0, |it| it.as_secs_f64() * 1e3);
        let quantile = |percent: usize| milliseconds(times.get(times.len() * percent / 100));
        Summary {
            kind,
            count: times.len(),
            per_second: times.len() as f64 / elapsed.as_secs_f64(),
            p50_milliseconds: quantile(50),
            p99_milliseconds: quantile(99),
            max_milliseconds: milliseconds(times.last()),
        }
    }

    fn row(&self) -> Vec<String> {
        let time = |milliseconds: f64| format!("{milliseconds:.2} ms");
        let times = [self.p50_milliseconds, self.p99_milliseconds, self.max_milliseconds];
        let counts =
            [self.kind.to_string(), self.count.to_string(), format!("{:.0}", self.per_second)];
        counts.into_iter().chain(times.map(time)).collect()
    }
}

pub(crate) async fn bench(client: &Client, output: Output, bench: Bench) -> Result<(), Failure> {
    // Whether there is a cluster is found out once, not by every client.
    client.send(Repeat::Harmless, client.get("/readyz")).await?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(bench.seconds);
    let progress = bar(bench.seconds, "{wide_bar} {pos} of {len} s");
    let clients = (0..bench.clients).map(|number| {
        let client = client.clone().rotated(number as usize);
        tokio::spawn(run(client, bench.clone(), end))
    });
    let clients: Vec<_> = clients.collect();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        progress.set_position(begun.elapsed().as_secs());
    }
    let mut all = Measured::default();
    for client in clients {
        let measured = client.await.map_err(std::io::Error::other)?;
        all.reads.extend(measured.reads);
        all.writes.extend(measured.writes);
        all.failures.extend(measured.failures);
    }
    progress.finish_and_clear();
    report(output, all, begun.elapsed())
}

/// One client: asks, waits, and asks again.
async fn run(client: Client, bench: Bench, end: Instant) -> Measured {
    let (mut measured, value) = (Measured::default(), vec![b'v'; bench.value_bytes]);
    while Instant::now() < end {
        let key = format!("/kv/bench/{}", rand::rng().random_range(0..bench.keys));
        let reads = rand::rng().random_range(0..100) < bench.reads;
        let begun = Instant::now();
        let result = if reads {
            client.send(Repeat::Harmless, client.get(&key)).await
        } else {
            let put = client.request(Method::PUT, &key);
            client.send(Repeat::Never, |node| put(node).body(value.clone())).await
        };
        let times = if reads { &mut measured.reads } else { &mut measured.writes };
        match result {
            Ok(response) => {
                // The connection is used again once the answer is read.
                let _ = response.bytes().await;
                times.push(begun.elapsed());
            }
            // A key that nobody has put yet was looked for all the same.
            Err(failure) if failure.is_not_found() => times.push(begun.elapsed()),
            Err(failure) => measured.failures.push(failure),
        }
    }
    measured
}

fn report(output: Output, all: Measured, elapsed: Duration) -> Result<(), Failure> {
    let kinds =
        [Summary::new("reads", all.reads, elapsed), Summary::new("writes", all.writes, elapsed)];
    let failed = all.failures.len();
    let json = serde_json::json!({ "seconds": elapsed.as_secs_f64(), "requests": kinds,
        "failed": failed });
    output.print(&json, || {
        let headings = ["", ">count", ">per second", ">p50", ">p99", ">slowest"];
        let rows: Vec<_> = kinds.iter().map(Summary::row).collect();
        format!("{}\n{failed} failed", table(&headings, &rows))
    })?;
    match all.failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}
