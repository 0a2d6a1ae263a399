//! The timer follows the wall clock, and wall clocks are set. It may hasten a turn, but nothing may
//! depend on it.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use crate::support::*;
use little_raft::{Body, Replica};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

/// A wall clock that stands still, so that the timer never fires. The monotonic clock goes on.
const STANDING_CLOCK: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME) return syscall(SYS_clock_gettime, clock, now);
    now->tv_sec = 1000000000;
    now->tv_nsec = 0;
    return 0;
}
";

/// Without the timer the loop would wait for a whole heartbeat timeout again whenever something else
/// has woken it.
#[test]
fn heartbeats_are_on_time_whatever_else_wakes_the_loop() {
    let heartbeat = Duration::from_millis(200);
    let (net, book) = (Net::new(3), Arc::new(Mutex::new(Book::default())));
    let wire = Arc::new(Mutex::new(Wire::new(1, &net)));
    let (node, mut puppet) = (
        Node::run(&wire, &book, &[2, 3], NEVER, |_| {
            let (wire, book, range) = (wire.clone(), book.clone(), (heartbeat * 2, heartbeat * 3));
            Replica::new(1, vec![2, 3], wire, book, Write(NOOP), heartbeat, range)
        }),
        Puppet::new(2, &net),
    );
    let mut rounds = Vec::new();
    while rounds.len() < 7 {
        puppet.letters.clear();
        node.until("a heartbeat", || {
            puppet.play();
            rounds.extend(puppet.bodies().find_map(|body| match body {
                Body::AppendEntries { round, .. } => Some(*round),
                _ => None,
            }));
            !puppet.letters.is_empty()
        });
        thread::sleep(heartbeat * 6 / 10);
        node.ring();
    }
    let gaps: Vec<_> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The first belongs to the election, and a busy machine may be late, but not always.
    let least = gaps.iter().skip(1).min();
    assert!(least.is_some_and(|gap| *gap < heartbeat * 5 / 4), "{gaps:?}");
}

#[test]
fn a_silent_timer_stops_no_election() {
    let dir = std::env::temp_dir().join(format!("little_raft_{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, STANDING_CLOCK).unwrap();
    let mut compiler = Command::new("cc");
    let compiler = compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(compiler.status().expect("this test needs a C compiler, cc").success());
    let test = "timer::elections_while_the_wall_clock_stands_still";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{error}");
}

#[test]
#[ignore = "needs a wall clock that stands still, which a_silent_timer_stops_no_election gives it"]
fn elections_while_the_wall_clock_stands_still() {
    let before = SystemTime::now();
    thread::sleep(HEARTBEAT);
    assert_eq!(SystemTime::now(), before, "the wall clock stands still");
    let mut group = Group::start(3, |_, replica| replica);
    group.write(1);
    let leader = group.leader().id;
    group.nodes[leader - 1].halt().unwrap();
    eventually("another leader", || {
        group.nodes.iter().any(|node| node.id != leader && node.leads())
    });
    let heard = group.nodes.iter().filter(|node| node.id != leader);
    for node in heard.filter(|node| node.leads()) {
        node.write(2);
        node.until("the write", || node.book().written.contains(&2));
    }
}
