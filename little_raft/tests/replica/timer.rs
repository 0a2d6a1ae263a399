//! The timer follows the wall clock, and wall clocks are set. It may hasten a turn, but nothing may
//! depend on it.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use crate::support::*;
use std::process::Command;
use std::thread;
use std::time::SystemTime;

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
