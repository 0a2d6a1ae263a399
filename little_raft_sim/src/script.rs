//! What happened, in the words of a script that drives a cluster by hand.

use crate::Faults;
use crate::clock::Time;
use crate::simulation::{Life, Simulation};
use crate::subject::Subject;
use little_raft::{Body, Membership, Message, ReplicaID, USER};
use std::time::Duration;

/// The commands so far, and those of the turn that is being taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    lines: Vec<String>,
    /// The time that the commands so far have let pass, in milliseconds.
    passed: u64,
    inputs: Vec<String>,
    after: Vec<String>,
    /// What the turn wanted to save was lost.
    pub(crate) fails: bool,
    /// The turn ended before it led to anything.
    pub(crate) stops: bool,
}

impl Script {
    pub(crate) fn new(faults: &Faults) -> Script {
        let ids =
            |from, to| (from..to).map(|id: usize| id.to_string()).collect::<Vec<_>>().join(",");
        let Faults { voters, joining, snapshot_delta, max_clock_drift, .. } = faults;
        let mut line = format!("cluster voters={}", ids(0, *voters));
        if *joining > 0 {
            line += &format!(" joining={}", ids(*voters, voters + joining));
        }
        if *snapshot_delta > 0 {
            line += &format!(" snapshots={snapshot_delta}");
        }
        if let Some(drift) = max_clock_drift {
            line += &format!(" lease={}", drift.as_millis());
        }
        let (least, greatest) = faults.election_timeout_range;
        let (least, greatest) = (least.as_millis(), greatest.as_millis());
        let heartbeat = faults.heartbeat_timeout.as_millis();
        line += &format!(" heartbeat={heartbeat} election={least}..{greatest}");
        Script { lines: vec![line], ..Script::default() }
    }

    /// A command outside of any turn.
    pub(crate) fn say(&mut self, now: Time, line: String) {
        let milliseconds = now / 1_000_000;
        if milliseconds > self.passed {
            self.lines.push(format!("wait {}", milliseconds - self.passed));
            self.passed = milliseconds;
        }
        self.lines.push(line);
    }

    /// Something that a turn takes in.
    fn take_in(&mut self, line: String) {
        self.inputs.push(line);
    }

    /// Something to be said once the turn is over.
    pub(crate) fn say_after(&mut self, line: String) {
        self.after.push(line);
    }

    /// A turn is over. All that it has taken in, it took in at once.
    pub(crate) fn end_turn(&mut self, id: ReplicaID, now: Time) {
        let (fails, stops) = (std::mem::take(&mut self.fails), std::mem::take(&mut self.stops));
        let inputs = std::mem::take(&mut self.inputs);
        if !inputs.is_empty() {
            let together = stops || fails || inputs.len() > 1;
            let before = [(together, "pause"), (fails && !stops, "fail-save")];
            for (_, name) in before.into_iter().filter(|(said, _)| *said) {
                self.say(now, format!("{name} {id}"));
            }
            inputs.into_iter().for_each(|line| self.say(now, line));
            if together && !stops {
                self.say(now, format!("resume {id}"));
            }
        }
        for line in std::mem::take(&mut self.after) {
            self.say(now, line);
        }
    }
}

impl<S: Subject> Simulation<S> {
    /// Says something in the script, if there is one.
    pub(crate) fn scripted(&mut self, say: impl FnOnce(&mut Script, Time)) {
        if let Some(script) = &mut self.script {
            say(script, self.now);
        }
    }

    /// What has happened so far, if it is [`traced`](Self::traced), as a script for
    /// `little_raft/tests/scripts`.
    ///
    /// There, replicas draw other election timeouts, clocks go by milliseconds and messages are
    /// named by who sent them, to whom and what they are. So the script does what happened here,
    /// step by step, but need not come to the same: it is where to begin with a script by hand.
    ///
    /// | here | there |
    /// | --- | --- |
    /// | a turn that takes in several things | `pause`, these, `resume` |
    /// | a deadline passes | `timeout` |
    /// | a message is lost, or comes too late to matter | `drop` |
    /// | a message comes again | nothing |
    /// | a crash before anything was saved | `pause`, what was taken in, `crash` |
    /// | a crash in the save, a save that fails | `fail-save`, whatever is found on the disk |
    /// | a crash after the save | the turn, `drop` of what it sent, `crash` |
    /// | a pause, a slow disk | nothing but the time that passes |
    /// | a clock that jumps | `advance`; clocks that run fast or slow do not |
    pub fn script(&self) -> String {
        let Some(mut script) = self.script.clone() else { return String::new() };
        script.end_turn(0, self.now);
        script.lines.join("\n") + "\n"
    }

    /// Takes down what a turn is about to take in: messages, and whether its deadline has passed.
    pub(crate) fn script_message(
        &mut self, id: ReplicaID, message: &Message<S::Transition, S::Data>,
    ) {
        let Some(script) = &mut self.script else { return };
        let list = |ids: &std::collections::BTreeSet<ReplicaID>| {
            ids.iter().map(ReplicaID::to_string).collect::<Vec<_>>().join(",")
        };
        script.take_in(match &message.body {
            body if message.from_id != USER => {
                format!("deliver {}->{id} {}", message.from_id, kind(body))
            }
            Body::ChangeMembership(Membership { voters, learners, .. }) => {
                format!("members {id} voters={} learners={}", list(voters), list(learners))
            }
            Body::TransferLeadership(to_id) => format!("transfer {id} to={to_id}"),
            body => unreachable!("no user sends {}", kind(body)),
        });
    }

    pub(crate) fn script_rest(&mut self, id: ReplicaID, life: &Life<S>, now: Duration) {
        let Some(script) = &mut self.script else { return };
        if life.raft.me.deadline <= now {
            script.take_in(format!("timeout {id}"));
        }
        if !life.raft.wants_transitions() {
            return;
        }
        if !life.proposals.is_empty() {
            let names = life.proposals.iter().map(|(number, _)| format!(" w{number}"));
            script.take_in(format!("propose {id}{}", names.collect::<String>()));
        }
        life.questions.iter().for_each(|_| script.take_in(format!("read {id}")));
    }

    /// A message that never arrives.
    pub(crate) fn script_loss(
        &mut self, from: ReplicaID, to: ReplicaID, message: &Message<S::Transition, S::Data>,
    ) {
        if let Some(script) = &mut self.script {
            script.say_after(format!("drop {from}->{to} {}", kind(&message.body)));
        }
    }
}

/// A message's name in a script.
fn kind<T, D>(body: &Body<T, D>) -> &'static str {
    match body {
        Body::RequestVote { .. } => "RequestVote",
        Body::Vote { .. } => "Vote",
        Body::AppendEntries { .. } => "AppendEntries",
        Body::InstallSnapshot { .. } => "InstallSnapshot",
        Body::Appended { .. } => "Appended",
        Body::TimeoutNow => "TimeoutNow",
        Body::ReadIndex { .. } => "ReadIndex",
        Body::ReadIndexResponse { .. } => "ReadIndexResponse",
        Body::ChangeMembership(_) => "ChangeMembership",
        Body::TransferLeadership(_) => "TransferLeadership",
    }
}
