//! What a replica costs that has nothing to do. Measured, not asserted: the figure depends on the
//! machine, and on what else it does.
//!
//! ```text
//! cargo test --release --package little_raft --test replica -- --ignored --nocapture idle
//! ```

#![cfg(target_os = "linux")]

use crate::support::*;
use crossbeam_channel::unbounded;
use little_raft::Replica;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The CPU time of every thread of this process.
fn cpu_time() -> BTreeMap<String, Duration> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let of_thread = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let nanos = std::fs::read_to_string(path.join("schedstat")).ok()?;
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let nanos = nanos.split_whitespace().next()?.parse().ok()?;
        let id = path.file_name()?.to_string_lossy().into_owned();
        Some((format!("{} {id}", name.trim()), Duration::from_nanos(nanos)))
    };
    threads.filter_map(of_thread).collect()
}

#[test]
#[ignore = "a measurement, of ten seconds"]
fn idle_replicas() {
    let (heartbeat, seconds) = (Duration::from_millis(50), 10);
    let timeouts = (Duration::from_millis(300), Duration::from_millis(600));
    let net = Net::new(3);
    let (mut wires, mut bells) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let wire = Arc::new(Mutex::new(Wire::new(id, &net)));
        let book = Arc::new(Mutex::new(Book::default()));
        let peers = (1..=3).filter(|peer| *peer != id).collect();
        let (bell, heard) = unbounded();
        let cluster = wire.clone();
        let mut replica = Replica::new(id, peers, cluster, book, Write(NOOP), heartbeat, timeouts);
        let recv_msg = net.bell(id);
        let start = move || replica.start(recv_msg, heard).unwrap();
        thread::Builder::new().name(format!("replica {id}")).spawn(start).unwrap();
        wires.push(wire);
        bells.push(bell);
    }
    eventually("a leader", || {
        wires.iter().any(|wire| wire.lock().unwrap().status().is_some_and(|it| it.leader.is_some()))
    });
    thread::sleep(Duration::from_secs(1));
    let turns =
        || wires.iter().map(|it| it.lock().unwrap().shared.turns.load(SeqCst)).sum::<usize>();
    let (began, before, turns_before) = (Instant::now(), cpu_time(), turns());
    thread::sleep(Duration::from_secs(seconds));
    let (took, after, turns) = (began.elapsed(), cpu_time(), turns() - turns_before);
    let mut all = Duration::ZERO;
    for (thread, time) in &after {
        let used = *time - before.get(thread).copied().unwrap_or_default();
        all += used;
        println!("{thread:24} {:.3} % of a core", 100.0 * used.as_secs_f64() / took.as_secs_f64());
    }
    let share = 100.0 * all.as_secs_f64() / took.as_secs_f64() / 3.0;
    let per_heartbeat = turns as f64 / 3.0 / (took.as_secs_f64() / heartbeat.as_secs_f64());
    println!("{share:.3} % of a core per idle replica, {per_heartbeat:.2} turns per heartbeat");
    for wire in &wires {
        wire.lock().unwrap().shared.halt.store(true, SeqCst);
    }
}
