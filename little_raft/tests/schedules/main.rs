//! The thread loop under schedules that a controller chooses, step by step.
//!
//! A replica meets the rest of the world in its user's traits, two mutexes and two channels only.
//! So a controller that stops every thread in each of these places owns the schedule of everything
//! that matters: it lets one thread go on, waits until all stop again or wait for each other, and
//! chooses the next. Time does not pass, since a heartbeat takes an hour here: a replica that waits
//! although it was told that there is something to do waits for good, and that is seen at once.
//! Where it is time that must wake it, heartbeats take some milliseconds.
//!
//! In every schedule: nobody waits for ever, no token is lost, whatever was asked for ends, the
//! mutexes are held one at a time and never around the storage, and halting ends `start`.
//!
//! `LITTLE_RAFT_SCHEDULES=100 cargo test -p little_raft --test schedules` tries a hundred times as
//! many. What fails says which seed tries it again, and what went on from which point.

#[path = "../common/mod.rs"]
mod common;
mod controller;
mod explore;
mod world;

use controller::{Controller, pause, wait_until};
use explore::Scene;
use little_raft::{Body, LogId, Message, Run};
use rand::{RngExt, rngs::StdRng};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use world::{Host, Terms, Which, World, Write};

/// How a client and its token come together.
#[derive(Clone, Copy)]
enum Manner {
    TokenAfterwards,
    TokenWhileItHolds,
    WithoutTheMutex,
}

impl Manner {
    fn any(random: &mut StdRng) -> Manner {
        match random.random_range(0..3) {
            0 => Manner::TokenAfterwards,
            1 => Manner::TokenWhileItHolds,
            _ => Manner::WithoutTheMutex,
        }
    }
}

/// Puts something where the replica looks for it, and says so.
fn submit(host: &Host, which: Which, manner: Manner, put: impl FnOnce(&Host)) {
    let token = || {
        pause("user: token");
        host.ring(which);
    };
    match manner {
        Manner::TokenAfterwards => host.hold(which, || put(host)),
        Manner::TokenWhileItHolds => {
            return host.hold(which, || {
                put(host);
                token();
            });
        }
        Manner::WithoutTheMutex => {
            pause("user: put");
            put(host);
        }
    }
    token();
}

/// A client that wants these written, or read if they are odd.
fn client(
    controller: &Controller, host: &Arc<Host>, manner: Manner, ids: impl IntoIterator<Item = usize>,
) {
    let (host, ids): (_, Vec<_>) = (host.clone(), ids.into_iter().collect());
    let name = format!("client {}", ids[0]);
    controller.user(&name, move || {
        let there = host.clone();
        wait_until("user: wait for the beginning", move || there.is_ready());
        for id in ids {
            submit(&host, Which::StateMachine, manner, |host| {
                let mut data = host.data();
                data.asked.insert(id);
                match id % 2 {
                    0 => data.pending.push(Write(id)),
                    _ => data.questions.push(id),
                }
            });
        }
    });
}

/// The network of a follower: so many appends of the leader, one after the other.
fn network(controller: &Controller, host: &Arc<Host>, manner: Manner, count: usize) {
    let host = host.clone();
    controller.user("network", move || {
        for index in 0..count {
            let transitions = Arc::new(vec![Write(1000 + index)]);
            let run = Run { first: index + 1, term: 1, transitions, membership: None };
            let prev = LogId { term: index.min(1), index };
            let (runs, round) = (vec![run], Duration::from_nanos(index as u64 + 1));
            let body = Body::AppendEntries { prev, runs, commit: index, round };
            submit(&host, Which::Cluster, manner, |host| {
                host.deliver(Message { from_id: 2, term: 1, body });
            });
        }
    });
}

/// Says that it is time to halt, and if time does not pass sends a token.
fn halter(controller: &Controller, world: &World, host: &Arc<Host>, token: Which) {
    let (host, token) = (host.clone(), (!world.terms.is_timed()).then_some(token));
    controller.user("halter", move || {
        let there = host.clone();
        wait_until("user: wait for the beginning", move || there.is_ready());
        pause("user: halt");
        host.halt.store(true, SeqCst);
        if let Some(which) = token {
            pause("user: token");
            host.ring(which);
        }
    });
}

/// A user that takes both mutexes, in one order or in the other.
fn greedy(controller: &Controller, host: &Arc<Host>, first: Which, second: Which) {
    let host = host.clone();
    controller.user("greedy", move || {
        for _ in 0..3 {
            host.hold(first, || host.hold(second, || ()));
        }
    });
}

fn which(random: &mut StdRng) -> Which {
    if random.random() { Which::Cluster } else { Which::StateMachine }
}

const LEADER: Scene = Scene {
    name: "a leader and its clients",
    terms: |random| Terms {
        bounded: random.random(),
        snapshots: random.random_range(0..3),
        ..Terms::TIMELESS
    },
    users: |controller, world, random| {
        world.voters(controller);
        let host = &world.hosts[0];
        client(controller, host, Manner::any(random), [2, 3]);
        client(controller, host, Manner::any(random), [5, 4, 6]);
    },
};

const FOLLOWER: Scene = Scene {
    name: "a follower, its network and a client",
    terms: |random| Terms { bounded: random.random(), leads: false, ..Terms::TIMELESS },
    users: |controller, world, random| {
        world.voters(controller);
        let host = &world.hosts[0];
        network(controller, host, Manner::any(random), 3);
        client(controller, host, Manner::any(random), [2, 3]);
    },
};

const HALT: Scene = Scene {
    name: "halting in the middle of everything",
    terms: |random| Terms { leads: random.random(), ..Terms::TIMELESS },
    users: |controller, world, random| {
        world.voters(controller);
        let (host, token) = (&world.hosts[0], which(random));
        client(controller, host, Manner::any(random), [2, 3]);
        halter(controller, world, host, token);
    },
};

const BOTH_MUTEXES: Scene = Scene {
    name: "a user that holds both mutexes",
    terms: |_| Terms::TIMELESS,
    users: |controller, world, random| {
        world.voters(controller);
        let host = &world.hosts[0];
        client(controller, host, Manner::any(random), [2, 3]);
        match which(random) {
            Which::Cluster => greedy(controller, host, Which::Cluster, Which::StateMachine),
            Which::StateMachine => greedy(controller, host, Which::StateMachine, Which::Cluster),
        }
    },
};

const ONE_MUTEX: Scene = Scene {
    name: "one thing behind one mutex",
    terms: |_| Terms { one_mutex: true, snapshots: 1, ..Terms::TIMELESS },
    users: |controller, world, random| {
        world.voters(controller);
        client(controller, &world.hosts[0], Manner::any(random), [2, 3]);
        client(controller, &world.hosts[0], Manner::any(random), [4]);
    },
};

const DISCONNECTED: Scene = Scene {
    name: "a channel that is disconnected",
    terms: |random| Terms { leads: random.random(), bounded: random.random(), ..Terms::TIMELESS },
    users: |controller, world, random| {
        if world.terms.leads {
            world.voters(controller);
        }
        let (host, manner) = (world.hosts[0].clone(), Manner::any(random));
        if !world.terms.leads {
            network(controller, &host, Manner::any(random), 2);
        }
        controller.user("client 2", move || {
            let there = host.clone();
            wait_until("user: wait for the beginning", move || there.is_ready());
            submit(&host, Which::StateMachine, manner, |host| {
                let mut data = host.data();
                data.asked.insert(2);
                data.pending.push(Write(2));
            });
            pause("user: disconnect");
            host.disconnect(Which::StateMachine);
        });
    },
};

const FAILING_DISK: Scene = Scene {
    name: "a disk that fails",
    terms: |random| Terms { fails_at: random.random_range(1..4), ..Terms::TIMELESS },
    users: |controller, world, random| {
        world.voters(controller);
        client(controller, &world.hosts[0], Manner::any(random), [2, 3]);
        client(controller, &world.hosts[0], Manner::any(random), [4, 6]);
    },
};

const POISONED: Scene = Scene {
    name: "a user that panics with a mutex",
    terms: |_| Terms::TIMELESS,
    users: |controller, world, random| {
        world.voters(controller);
        let (host, which) = (world.hosts[0].clone(), which(random));
        world.is_poisoned = true;
        client(controller, &host, Manner::any(random), [2, 4]);
        controller.user("poisoner", move || {
            pause("user: poison");
            host.poison(which);
            pause("user: token");
            host.ring(Which::Cluster);
        });
    },
};

const RESTARTED: Scene = Scene {
    name: "halted and started again",
    terms: |random| Terms { restarts: 1, bounded: random.random(), ..Terms::TIMELESS },
    users: |controller, world, random| {
        world.voters(controller);
        let (host, token) = (world.hosts[0].clone(), which(random));
        client(controller, &host, Manner::any(random), [2, 3]);
        controller.user("operator", move || {
            let there = host.clone();
            wait_until("user: wait for the beginning", move || there.is_ready());
            pause("user: halt");
            host.halt.store(true, SeqCst);
            pause("user: token");
            host.ring(token);
            let there = host.clone();
            wait_until("user: wait for the end", move || !there.data().results.is_empty());
            host.halt.store(false, SeqCst);
        });
    },
};

const GROUP: Scene = Scene {
    name: "three replicas",
    terms: |_| Terms { replicas: 3, ..Terms::TIMELESS },
    users: |controller, world, random| {
        client(controller, &world.hosts[0], Manner::any(random), [2, 3]);
        client(controller, &world.hosts[1], Manner::any(random), [4, 5]);
        if random.random() {
            halter(controller, world, &world.hosts[2], Which::Cluster);
        }
    },
};

const TIMED: Scene = Scene {
    name: "a replica by itself, as time passes",
    terms: |_| Terms { voters: 1, heartbeat: Duration::from_millis(2), ..Terms::TIMELESS },
    users: |controller, world, random| {
        client(controller, &world.hosts[0], Manner::any(random), [2, 3]);
        match random.random_range(0..4) {
            0 => halter(controller, world, &world.hosts[0], Which::Cluster),
            1 => {
                let host = world.hosts[0].clone();
                controller.user("breaker", move || {
                    pause("user: disconnect");
                    host.disconnect(Which::Cluster);
                });
            }
            _ => {}
        }
    },
};

const TIMED_GROUP: Scene = Scene {
    name: "three replicas, as time passes",
    terms: |_| Terms { replicas: 3, heartbeat: Duration::from_millis(10), ..Terms::TIMELESS },
    users: |controller, world, random| {
        for (place, host) in world.hosts.iter().enumerate() {
            client(controller, host, Manner::any(random), [2 * place + 2, 2 * place + 3]);
        }
    },
};

#[test]
fn a_leader_serves_its_clients() {
    LEADER.at_random(300);
}

#[test]
fn a_follower_serves_its_leader_and_its_clients() {
    FOLLOWER.at_random(300);
}

#[test]
fn halting_always_ends_it() {
    HALT.at_random(300);
}

#[test]
fn it_never_waits_for_a_user_that_waits_for_it() {
    BOTH_MUTEXES.at_random(200);
}

#[test]
fn one_thing_may_be_both_behind_one_mutex() {
    ONE_MUTEX.at_random(200);
}

#[test]
fn tokens_count_though_their_channel_is_disconnected() {
    DISCONNECTED.at_random(200);
}

#[test]
fn a_failed_save_ends_it() {
    FAILING_DISK.at_random(300);
}

#[test]
fn a_poisoned_mutex_ends_it() {
    POISONED.at_random(300);
}

#[test]
fn no_token_is_lost_between_two_starts() {
    RESTARTED.at_random(300);
}

#[test]
fn three_replicas_serve_their_clients() {
    GROUP.at_random(200);
}

#[test]
fn all_schedules_of_a_halt_with_two_departures() {
    HALT.exhaustively(2);
}

#[test]
fn all_schedules_of_a_follower_with_two_departures() {
    FOLLOWER.exhaustively(2);
}

#[test]
fn all_schedules_of_the_others_with_two_departures() {
    for scene in [LEADER, BOTH_MUTEXES, ONE_MUTEX, DISCONNECTED, FAILING_DISK, POISONED] {
        scene.exhaustively(2);
    }
}

#[test]
fn all_schedules_of_three_replicas_with_one_departure() {
    GROUP.exhaustively(1);
}

#[test]
fn time_wakes_it_and_halting_needs_no_token() {
    TIMED.at_random(100);
}

#[test]
fn three_replicas_serve_their_clients_as_time_passes() {
    TIMED_GROUP.at_random(10);
}
