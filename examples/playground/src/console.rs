//! Does what was typed, and puts into words what came of it.

use crate::board::Leader;
use crate::client::{Client, GivenUp};
use crate::cluster::{Cluster, Standing};
use crate::command::{COMMANDS, Command, Which};
use crate::store::{Action, Answer, Text};
use crate::{load, tables};
use little_raft::{Membership, ReplicaID};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the leader is given to begin a change of the members before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The one who sits in front of the cluster.
pub(crate) struct Console {
    cluster: Cluster,
    client: Client,
    /// How long to wait for anything.
    time_limit: Duration,
}

impl Console {
    pub(crate) fn new(cluster: Cluster, time_limit: Duration) -> Console {
        Console { cluster, client: Client::new(time_limit), time_limit }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.time_limit
    }

    /// Waits for the first leader.
    pub(crate) fn greet(&self) -> String {
        self.cluster.settle(self.deadline());
        let count = self.cluster.ids().len();
        let replicas = if count == 1 { "1 replica runs" } else { &format!("{count} replicas run") };
        format!("{replicas} in this process; `help` lists the commands")
    }

    /// Where the leader is, or why there is none.
    pub(crate) fn whereabouts(&self) -> String {
        match self.cluster.standing(&self.cluster.board().look()) {
            Standing::Led(Leader { id, term }) => format!("leader {id}, term {term}"),
            Standing::Electing => "no leader yet".to_string(),
            Standing::Impossible(membership) => format!(
                "no leader: no majority of the voters {} runs and is connected",
                tables::voters(&membership)
            ),
        }
    }

    /// Stops everything. Tells what went wrong with any replica, now or before.
    pub(crate) fn quit(mut self) -> Result<(), String> {
        let failures = self.cluster.stop_all().into_iter();
        let failures = failures.map(|(id, error)| format!("replica {id} had failed: {error}"));
        let failures = failures.collect::<Vec<_>>().join("\n");
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// Does what a command says. Returns what happened, or why it did not.
    pub(crate) fn execute(&mut self, command: Command) -> Result<String, String> {
        match command {
            Command::Set { key, value } => self.write(Action::Set { key, value }),
            Command::Delete { key } => self.write(Action::Delete { key }),
            Command::CompareAndSwap { key, old, new } => {
                self.write(Action::CompareAndSwap { key, old, new })
            }
            Command::Get { key, at } => self.get(&key, at),
            Command::Load(file) => self.load(&file),
            Command::Status => Ok(tables::status(&self.cluster)),
            Command::Snapshot => Ok(tables::snapshots(&self.cluster)),
            Command::Kill(which) => self.kill(which),
            Command::Restart(id) => self.restart(id),
            Command::Cut(one, other) => self.cut(one, other),
            Command::Heal => {
                self.cluster.network().heal();
                self.cluster.settle(self.deadline());
                Ok("all links are mended".to_string())
            }
            Command::Members { voters, learners } => self.members(&voters, &learners),
            Command::Transfer(id) => self.transfer(id),
            Command::Help => {
                let lines = COMMANDS.iter().map(|(form, does)| format!("{form:<40}{does}"));
                Ok(lines.collect::<Vec<_>>().join("\n"))
            }
            Command::Quit => Ok("all replicas are stopped".to_string()),
        }
    }
}

/// Reading and writing.
impl Console {
    fn write(&mut self, action: Action) -> Result<String, String> {
        let mut answer = None;
        let written = self.client.write(&self.cluster, [action.clone()], |it| answer = Some(it));
        match (written, answer) {
            (Ok(()), Some(answer)) => Ok(tell_write(&action, &answer)),
            (Err(GivenUp { unknown: 0, .. }), _) => {
                Err(format!("nothing was written: no leader took it within {:?}", self.time_limit))
            }
            _ => Err(format!(
                "outcome unknown: no majority confirmed it within {:?}; it may be written or not, \
                 now or later",
                self.time_limit
            )),
        }
    }

    fn get(&mut self, key: &Text, at: Option<Which>) -> Result<String, String> {
        let at = match at {
            Some(Which::Id(id)) => Some(self.running(id)?),
            Some(Which::Leader) | None => None,
        };
        match self.client.read(&self.cluster, key, at) {
            Some((id, Some(value))) => Ok(format!("{key} is {value}, at replica {id}")),
            Some((id, None)) => Ok(format!("there is no {key}, at replica {id}")),
            None => Err(format!(
                "nobody can tell: no leader that a majority follows answered within {:?}",
                self.time_limit
            )),
        }
    }

    fn load(&mut self, file: &Path) -> Result<String, String> {
        let lines = load::read(file)?;
        let (count, bar) = (lines.len(), load::progress_bar(lines.len()));
        let began = Instant::now();
        let actions = lines.into_iter().map(|(key, value)| Action::Set { key, value });
        let written = self.client.write(&self.cluster, actions, |_| bar.inc(1));
        let took = began.elapsed().as_secs_f64();
        bar.finish_and_clear();
        if let Err(GivenUp { unknown, not_applied }) = written {
            return Err(format!(
                "stopped: no progress for {:?}; {} of {count} keys are written, {unknown} may be, \
                 {not_applied} are not",
                self.time_limit,
                count - unknown - not_applied,
            ));
        }
        let rate = count as f64 / took;
        let agreement = tables::agreement(&self.cluster, self.deadline())?;
        Ok(format!(
            "{count} keys written in {took:.2} s, {rate:.0} transitions per second\n{agreement}"
        ))
    }
}

fn tell_write(action: &Action, answer: &Answer) -> String {
    match (action, answer) {
        (Action::Delete { key }, Answer::Done { before: Some(before) }) => {
            format!("{key} is deleted; it was {before}")
        }
        (Action::Delete { key }, _) => format!("there was no {key}"),
        (Action::Set { key, value }, Answer::Done { before: None }) => {
            format!("{key} is {value}; it is new")
        }
        (
            Action::Set { key, value } | Action::CompareAndSwap { key, new: value, .. },
            Answer::Done { before } | Answer::Refused { before },
        ) => {
            let before = before.as_deref();
            match (answer, before) {
                (Answer::Done { .. }, Some(before)) => format!("{key} is {value}; it was {before}"),
                (_, Some(before)) => format!("nothing was written: {key} is {before}"),
                (_, None) => format!("nothing was written: there is no {key}"),
            }
        }
    }
}

/// Trouble.
impl Console {
    fn known(&self, id: ReplicaID) -> Result<ReplicaID, String> {
        let ids = self.cluster.ids();
        if ids.contains(&id) {
            Ok(id)
        } else {
            Err(format!("there is no replica {id}, only {}", tables::list(&ids)))
        }
    }

    fn running(&self, id: ReplicaID) -> Result<ReplicaID, String> {
        let id = self.known(id)?;
        let running = self.cluster.is_running(id);
        if running { Ok(id) } else { Err(format!("replica {id} does not run: restart {id}")) }
    }

    fn leader(&self) -> Result<Leader, String> {
        match self.cluster.settle(self.deadline()) {
            Standing::Led(leader) => Ok(leader),
            _ => Err("nothing was done: there is no leader".to_string()),
        }
    }

    fn which(&self, which: Which) -> Result<ReplicaID, String> {
        match which {
            Which::Leader => self.leader().map(|leader| leader.id),
            Which::Id(id) => self.known(id),
        }
    }

    fn kill(&mut self, which: Which) -> Result<String, String> {
        let id = self.which(which).and_then(|id| self.running(id))?;
        let led = self.cluster.board().look().leader().is_some_and(|leader| leader.id == id);
        let stopped = self.cluster.stop(id);
        stopped.map_err(|error| format!("replica {id} had failed: {error}"))?;
        let began = Instant::now();
        match self.cluster.settle(self.deadline()) {
            Standing::Led(Leader { id: next, .. }) if led => {
                let took = began.elapsed().as_secs_f64();
                Ok(format!(
                    "replica {id} led and is stopped; replica {next} leads after {took:.2} s"
                ))
            }
            _ => Ok(format!("replica {id} is stopped")),
        }
    }

    fn restart(&mut self, id: ReplicaID) -> Result<String, String> {
        if self.cluster.is_running(self.known(id)?) {
            return Err(format!("replica {id} runs already"));
        }
        // If it has failed by itself, that comes out here.
        self.cluster.stop(id).map_err(|error| format!("replica {id} had failed: {error}"))?;
        let failed = |error| format!("replica {id} could not be started: {error}");
        self.cluster.run(id).map_err(failed)?;
        let began = Instant::now();
        let caught_up = self.cluster.catch_up(self.deadline()).contains(&id);
        let took = began.elapsed().as_secs_f64();
        Ok(match caught_up {
            true => format!("replica {id} is back, and has caught up after {took:.2} s"),
            false => format!("replica {id} is back, with what it had saved"),
        })
    }

    fn cut(&mut self, one: Which, other: Option<Which>) -> Result<String, String> {
        let one = self.which(one)?;
        let text = match other {
            Some(other) => {
                let other = self.which(other)?;
                if one == other {
                    return Err(format!("replica {one} has no link to itself"));
                }
                self.cluster.network().cut(one, other);
                format!("the link between {one} and {other} is cut")
            }
            None => {
                let others = self.cluster.ids().into_iter().filter(|id| *id != one);
                others.for_each(|other| self.cluster.network().cut(one, other));
                format!("replica {one} is cut off from all others")
            }
        };
        self.cluster.settle(self.deadline());
        Ok(text)
    }
}

/// Changes of the cluster.
impl Console {
    fn transfer(&mut self, id: ReplicaID) -> Result<String, String> {
        let leader = self.leader()?;
        let membership = self.membership();
        if !membership.voters.contains(&id) {
            let voters = tables::voters(&membership);
            return Err(format!(
                "replica {id} is no voter, so it cannot lead; the voters: {voters}"
            ));
        }
        let began = Instant::now();
        if leader.id != id {
            self.cluster.transfer_leadership(leader, id);
            let handed_over = self.cluster.board().wait(self.deadline(), |told| {
                let now_leads = told.leader().filter(|now_leads| *now_leads != leader)?;
                Some(now_leads.id)
            });
            self.cluster.settle(self.deadline());
            if handed_over != Some(id) {
                let runs = if self.cluster.is_running(id) { "" } else { ", which does not run" };
                return Err(format!("leadership was not handed over to replica {id}{runs}"));
            }
        }
        Ok(format!("replica {id} leads, after {:.2} s", began.elapsed().as_secs_f64()))
    }

    fn membership(&self) -> Membership {
        let membership = self.cluster.membership(&self.cluster.board().look());
        membership.map(|it| Membership::clone(&it)).unwrap_or_default()
    }

    fn members(
        &mut self, voters: &BTreeSet<ReplicaID>, learners: &BTreeSet<ReplicaID>,
    ) -> Result<String, String> {
        self.leader()?;
        let before = self.membership();
        let mut text = Vec::new();
        for id in voters.union(learners).copied() {
            if !before.members().contains(&id) && !self.cluster.is_running(id) {
                let failed = |error| format!("replica {id} could not be started: {error}");
                self.cluster.run(id).map_err(failed)?;
                text.push(format!("replica {id} is started"));
            }
        }
        let began = Instant::now();
        self.await_members(voters, learners)?;
        text.push(format!("the members are changed after {:.2} s", began.elapsed().as_secs_f64()));
        let members = self.membership();
        for id in self.cluster.ids().difference(&members.members()).copied() {
            if self.cluster.is_running(id) {
                self.cluster.stop(id).map_err(|it| format!("replica {id} had failed: {it}"))?;
                text.push(format!("replica {id} is no member any more and is stopped"));
            }
        }
        self.cluster.settle(self.deadline());
        text.push(tables::members(&members));
        Ok(text.join("\n"))
    }

    /// Asks for a change of the members until a leader has committed it. The leader may refuse at
    /// first, for instance because it is new.
    fn await_members(
        &self, voters: &BTreeSet<ReplicaID>, learners: &BTreeSet<ReplicaID>,
    ) -> Result<(), String> {
        let wanted = Membership {
            voters: voters.clone(),
            learners: learners.clone(),
            outgoing: BTreeSet::new(),
        };
        let deadline = self.deadline();
        while Instant::now() < deadline {
            let leader = self.leader()?;
            let at = self.cluster.status(leader.id).map(|status| status.membership);
            if at.is_some_and(|membership| *membership != wanted) {
                self.cluster.change_membership(leader, voters, learners);
            }
            let mut entry = None;
            let done = self.cluster.board().wait(Instant::now() + ASK_AGAIN, |told| {
                let status = self.cluster.authority(told);
                let status = status.filter(|status| *status.membership == wanted)?;
                // The entry of a configuration that is in force lies at or before the last.
                let entry = *entry.get_or_insert(status.last_index);
                (status.commit >= entry).then_some(())
            });
            if done.is_some() {
                return Ok(());
            }
        }
        Err(format!(
            "the change is not complete after {:?}, but may be later: see `status`",
            self.time_limit
        ))
    }
}
