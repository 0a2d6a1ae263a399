//! The commands of a script:
//!
//! ```text
//! cluster voters=1,2,3 [learners=4] [joining=5] [snapshots=2] [lease=DRIFT] [heartbeat=10]
//!         [election=100 or 100..200]      starts a cluster; times are milliseconds
//! saved 1,2 [term=2] [vote=1] [[1@1 2@1=a 3@2={voters=1,2}]] [snapshot=2] [compacted=1]
//!                          these replicas start from this instead of nothing
//! tick 10                  this much time passes, then every replica looks at its clock
//! wait 10                  this much time passes, and nobody looks at a clock
//! advance 1 10             the clock of one replica runs ahead by this much
//! timeout 1                time passes until the deadline of n1, and n1 alone looks at its clock:
//!                          it stands for election or, as a leader, sends heartbeats
//! elect 1                  timeout 1 and all that follows, tersely, until n1 leads and all know it
//! run 1000 [delay=50]      time passes in small steps and messages arrive, tersely
//! propose 1 a b c*3        n1 is to append a, b, c1, c2 and c3
//! read 1                   n1 is to confirm a read; they are named r1, r2, …
//! members 1 voters=1,2 [learners=3]       n1 is asked to change the configuration
//! transfer 1 to=2          n1 is asked to hand leadership over
//! inject 3@5->1 Body       n1 receives what n3 says in term 5, in the words in which it is printed
//! deliver [#7] [1->2] [Vote]              delivers messages in the order in which they were sent:
//!                          those underway, or one by its number, for a second time if need be
//! drop, hold, release      the same choice of messages is lost, put aside, underway again
//! stabilize                delivers messages until there are none
//! cut 1->2 3-1             messages are lost one way, both ways
//! partition 1 2 | 3        messages between these groups are lost
//! heal                     no messages are lost any more
//! pause 1, resume 1        n1 takes in everything, in one turn when resumed
//! slow 1, apply 1 [2]      n1 applies only when told, so many transitions or all
//! fail-save 1              the next save of n1 fails
//! crash 1, restart 1       n1 stops; starts from what it has saved
//! wipe 1                   n1 is down and loses what it has saved
//! status [1]               how a replica is, what it has saved, and what it owes an outcome for
//! ```
//!
//! `quiet` before a command keeps it from being printed. `terse` prints only what changes: roles,
//! configurations, outcomes and answers, and whatever is refused.

use super::text::{
    Payload, entries, option, parse_body, parse_change, parse_ids, parse_number, parse_runs,
    show_id, show_membership, show_runs, words,
};
use super::{Body, Change, Cluster, Envelope, Fate, Message, Node, Transition};
use little_raft::raft::{Config, Role};
use little_raft::{LogId, Membership, ReplicaID, Snapshot};
use std::time::Duration;

fn milliseconds(text: &str) -> Duration {
    Duration::from_millis(parse_number(text))
}

/// `1->2` with either end left out for any.
fn parse_link(text: &str) -> Option<(Option<ReplicaID>, Option<ReplicaID>)> {
    let (from, to) = text.split_once("->")?;
    let end = |text: &str| (!text.is_empty()).then(|| parse_number(text));
    Some((end(from), end(to)))
}

impl Cluster {
    /// Does what a line says.
    pub(crate) fn command(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("quiet ") {
            let before = self.output.len();
            self.command(rest);
            return self.output.truncate(before);
        }
        if let Some(rest) = line.strip_prefix("terse ") {
            self.terse = true;
            self.command(rest);
            self.terse = false;
            return;
        }
        let words = words(line);
        let (name, rest) = words.split_first().expect("a command");
        match name.as_str() {
            "cluster" => self.start_cluster(rest),
            "saved" => self.start_from(rest),
            "tick" | "wait" | "advance" | "timeout" | "elect" | "run" => self.pass_time(name, rest),
            "propose" | "read" | "members" | "transfer" => self.ask(name, rest),
            "inject" => self.inject(rest),
            "deliver" | "drop" | "hold" | "release" => self.choose(name, rest),
            "stabilize" => self.stabilize(Duration::ZERO),
            "cut" | "partition" => self.cut(rest),
            "heal" => self.cuts.clear(),
            "status" => self.print_status(rest),
            _ => self.handle(name, parse_number(&rest[0]), rest),
        }
    }

    fn start_cluster(&mut self, words: &[String]) {
        *self = Cluster { output: self.take_output(), ..Cluster::default() };
        let ids = |name| option(words, name).map(parse_ids::<Vec<_>>).unwrap_or_default();
        let (voters, learners, joining) = (ids("voters"), ids("learners"), ids("joining"));
        let time = |name, default| milliseconds(option(words, name).unwrap_or(default));
        let election = option(words, "election").unwrap_or("100");
        let (least, greatest) = election.split_once("..").unwrap_or((election, election));
        let initial = Membership {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            ..Membership::default()
        };
        for &id in voters.iter().chain(&learners).chain(&joining) {
            let config = Config {
                id,
                peer_ids: voters.iter().copied().filter(|peer| *peer != id).collect(),
                heartbeat_timeout: time("heartbeat", "10"),
                election_timeout_range: (milliseconds(least), milliseconds(greatest)),
                snapshot_delta: option(words, "snapshots").map_or(0, parse_number),
                max_clock_drift: option(words, "lease").map(milliseconds),
                joining: joining.contains(&id),
                seed: 0,
            };
            let knows = !learners.is_empty() && !config.joining;
            let membership = knows.then(|| initial.clone());
            let saved = Change { membership, ..Change::default() };
            self.nodes.insert(id, Node::new(config, saved));
            self.start(id);
        }
    }

    fn start_from(&mut self, words: &[String]) {
        for id in parse_ids::<Vec<_>>(&words[0]) {
            let mut runs = parse_runs(words);
            let log = entries(&runs);
            let index = |name| option(words, name).map_or(0, parse_number::<usize>);
            let at = |index: usize| log.iter().find(|it| it.0.index == index).map(|it| it.0);
            let (snapshot, compacted) = (index("snapshot"), index("compacted"));
            let covered = &log[..snapshot];
            self.laws.given(covered);
            let state = self.laws.state_at(snapshot);
            let compacted = at(compacted).unwrap_or_default();
            runs.retain(|run| run.last().index > compacted.index);
            runs.iter_mut().for_each(|run| *run = run.slice(compacted.index + 1, usize::MAX));
            let last_term = log.last().map_or(0, |it| it.0.term);
            let node = self.node(id);
            let voters = node.config.peer_ids.iter().copied().chain([id]).collect();
            let first = Membership { voters, ..Membership::default() };
            let configured = covered.iter().rev().find_map(|(_, payload)| match payload {
                Payload::Membership(membership) => Some(membership.clone()),
                Payload::Transition(_) => None,
            });
            let membership = configured.or(node.saved.membership.clone()).or(Some(first));
            node.saved = Change {
                term: option(words, "term").map_or(last_term, parse_number),
                voted_for: option(words, "vote").map(parse_number),
                truncate_from: None,
                compacted,
                runs,
                snapshot: at(snapshot).map(|LogId { term, index }| Snapshot {
                    last_included_index: index,
                    last_included_term: term,
                    data: state,
                }),
                membership,
            };
            self.start(id);
        }
    }

    fn pass_time(&mut self, name: &str, words: &[String]) {
        let all: Vec<ReplicaID> = self.nodes.keys().copied().collect();
        match name {
            "tick" => {
                self.advance(milliseconds(&words[0]));
                all.into_iter().for_each(|id| self.tick(id));
            }
            "wait" => self.advance(milliseconds(&words[0])),
            "advance" => {
                let id = parse_number(&words[0]);
                self.node(id).clock += milliseconds(&words[1]);
                self.tick(id);
            }
            "timeout" => self.timeout(parse_number(&words[0])),
            "elect" => self.elect(parse_number(&words[0])),
            _ => self.run(
                milliseconds(&words[0]),
                option(words, "delay").map(milliseconds).unwrap_or_default(),
            ),
        }
    }

    fn timeout(&mut self, id: ReplicaID) {
        let missing = self.raft(id).me.deadline.saturating_sub(self.node(id).clock);
        self.advance(missing);
        self.tick(id);
    }

    fn elect(&mut self, id: ReplicaID) {
        let before = self.output.len();
        for _ in 0..3 {
            self.timeout(id);
            self.stabilize(Duration::ZERO);
        }
        assert_eq!(self.raft(id).me.role, Role::Leader, "n{id} is not elected");
        self.output.truncate(before);
        self.tell(id, "becomes leader");
    }

    fn run(&mut self, time: Duration, delay: Duration) {
        let (step, end) = (Duration::from_millis(5), self.time + time);
        self.terse = true;
        while self.time < end {
            self.advance(step);
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.tick(id);
            }
            self.stabilize(delay);
        }
        self.terse = false;
    }

    fn ask(&mut self, name: &str, words: &[String]) {
        let id = parse_number(&words[0]);
        match name {
            "propose" => self.propose(id, &words[1..]),
            "read" => self.read(id),
            "members" => {
                self.step(id, parse_change(&words[1..]));
            }
            _ => {
                let to = option(words, "to").expect("transfer needs `to=`");
                self.step(id, Message::transfer_leadership(parse_number(to)));
            }
        }
    }

    fn propose(&mut self, id: ReplicaID, words: &[String]) {
        let mut names = Vec::new();
        for word in words {
            match word.split_once('*') {
                Some((name, count)) => {
                    let count: usize = parse_number(count);
                    names.extend((1..=count).map(|number| format!("{name}{number}")));
                }
                None => names.push(word.clone()),
            }
        }
        let transitions = names.into_iter().map(Transition).collect();
        self.take_in(id, |raft, _| raft.propose(transitions));
    }

    fn read(&mut self, id: ReplicaID) {
        let (clock, committed) = (self.node(id).clock, self.laws.last_committed());
        self.take_in(id, |raft, reads| reads.push((id, raft.read(clock), committed)));
    }

    /// `3@5->1 Body`: the round of a forged append or answer is the receiver's present time, which
    /// is never before the last round that was begun.
    fn inject(&mut self, words: &[String]) {
        let (from, to) = words[0].split_once("->").expect("inject needs from@term->to");
        let (from, term) = from.split_once('@').expect("inject needs from@term->to");
        let to = parse_number(to);
        let round = option(words, "round").map(milliseconds).unwrap_or(self.last_round(to));
        let context = |name: &str| match name.strip_prefix('r') {
            Some(number) => self.reads[parse_number::<usize>(number) - 1].1,
            None => parse_number(name),
        };
        let body = parse_body(&words[1..], round, context);
        let message = Message { from_id: parse_number(from), term: parse_number(term), body };
        self.step(to, message);
    }

    /// The last round that a replica sent, which an answer to it would echo.
    fn last_round(&self, id: ReplicaID) -> Duration {
        let mut rounds = self.sent.iter().filter_map(|it| match &it.message.body {
            Body::AppendEntries { round, .. } | Body::InstallSnapshot { round, .. } => {
                Some(*round).filter(|_| it.message.from_id == id)
            }
            _ => None,
        });
        rounds.next_back().unwrap_or(self.time)
    }

    /// Delivers, drops, holds or releases a choice of messages.
    fn choose(&mut self, name: &str, words: &[String]) {
        let fate = if name == "release" { Fate::Held } else { Fate::Underway };
        for place in self.chosen(words, fate) {
            match name {
                "deliver" => self.deliver(place),
                "drop" => self.sent[place].fate = Fate::Gone,
                "hold" => self.sent[place].fate = Fate::Held,
                _ => self.sent[place].fate = Fate::Underway,
            }
        }
    }

    fn chosen(&self, words: &[String], fate: Fate) -> Vec<usize> {
        let numbers = words.iter().filter_map(|word| word.strip_prefix('#'));
        let numbers: Vec<usize> = numbers.map(|number| parse_number::<usize>(number) - 1).collect();
        if !numbers.is_empty() {
            let known = numbers.iter().all(|place| *place < self.sent.len());
            assert!(known, "there are {} messages", self.sent.len());
            return numbers;
        }
        let link = words.iter().find_map(|word| parse_link(word)).unwrap_or_default();
        let kind = words.iter().find(|word| parse_link(word).is_none());
        let fits = |envelope: &Envelope| {
            let Message { from_id: from, body, .. } = &envelope.message;
            let body = format!("{body:?}");
            envelope.fate == fate
                && link.0.is_none_or(|id| id == *from)
                && link.1.is_none_or(|id| id == envelope.to)
                && kind.is_none_or(|kind| body.split([' ', '(']).next() == Some(kind))
        };
        (0..self.sent.len()).filter(|place| fits(&self.sent[*place])).collect()
    }

    fn cut(&mut self, words: &[String]) {
        if words[0].contains('-') {
            for word in words {
                if let Some((Some(from), Some(to))) = parse_link(word) {
                    self.cuts.insert((from, to));
                } else {
                    let (one, other) = word.split_once('-').expect("cut needs 1->2 or 1-2");
                    let (one, other) = (parse_number(one), parse_number(other));
                    self.cuts.extend([(one, other), (other, one)]);
                }
            }
            return;
        }
        let groups: Vec<Vec<ReplicaID>> = words
            .split(|word| word == "|")
            .map(|group| group.iter().map(|id| parse_number(id)).collect())
            .collect();
        for (place, group) in groups.iter().enumerate() {
            let others = groups.iter().enumerate().filter(|(other, _)| *other != place);
            for other in others.flat_map(|(_, other)| other) {
                self.cuts.extend(group.iter().map(|id| (*id, *other)));
            }
        }
    }

    fn handle(&mut self, name: &str, id: ReplicaID, words: &[String]) {
        match name {
            "pause" => self.node(id).paused = true,
            "resume" => {
                self.node(id).paused = false;
                self.turn(id);
            }
            "slow" => self.node(id).slow = true,
            "apply" => {
                self.apply(id, words.get(1).map_or(usize::MAX, |count| parse_number(count)));
                self.finish_turn(id);
            }
            "fail-save" => self.node(id).fails = true,
            "crash" => self.stop(id),
            "restart" => self.start(id),
            "wipe" => {
                self.stop(id);
                self.node(id).saved = Change::default();
            }
            _ => panic!("`{name}` is no command"),
        }
    }

    fn print_status(&mut self, words: &[String]) {
        let all: Vec<ReplicaID> = self.nodes.keys().copied().collect();
        for id in words.first().map_or(all, |ids| parse_ids(ids)) {
            let Some(status) = self.node(id).raft.as_ref().map(|raft| raft.me.clone()) else {
                self.output.push(format!("n{id} is down"));
                continue;
            };
            let node = &self.nodes[&id];
            let role = match (status.role, status.leader) {
                (Role::Follower, Some(leader)) => format!("Follower of n{leader}"),
                (role, _) => format!("{role:?}"),
            };
            let vote = node.saved.voted_for.map_or("nobody".into(), |id| format!("n{id}"));
            let end = node.saved.snapshot.as_ref().map(|it| show_id(it.last()));
            let snapshot = end.map_or(String::new(), |end| format!(" snapshot={end}"));
            let (log, commit, applied) =
                (show_runs(&node.saved.runs), status.commit, status.applied);
            let mut text = format!(
                "{role}, voted for {vote}, {}, commit={commit} applied={applied}{snapshot} log={log}",
                show_membership(&status.membership)
            );
            let underway = self.laws.underway(id);
            if !underway.is_empty() {
                text += &format!(" underway=[{}]", underway.join(" "));
            }
            self.tell(id, &text);
            for (peer, progress) in status.peers {
                let activity = match (progress.installing, progress.probing) {
                    (Some(_), _) => "installing",
                    (None, true) => "probing",
                    (None, false) => "replicating",
                };
                let (matched, next) = (progress.matched, progress.next);
                self.output.push(format!("  n{peer} matched={matched} next={next} {activity}"));
            }
        }
    }
}

impl Node {
    fn new(config: Config, saved: Change) -> Node {
        Node {
            config,
            raft: None,
            saved,
            state: Vec::new(),
            clock: Duration::ZERO,
            starts: 0,
            fails: false,
            paused: false,
            slow: false,
            told: None,
            commit: 0,
        }
    }
}
