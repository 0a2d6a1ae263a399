//! One turn of one replica, as `Replica` takes it, but for the crashes in it.

use crate::DiskFault;
use crate::clock::{Time, nanos};
use crate::laws::{Broken, broken};
use crate::ledger::{Appended, Ledger, digest_of};
use crate::simulation::{Batch, CrashPoint, Event, Life, Simulation, note};
use crate::subject::{Ending, Subject};
use little_raft::{
    Body, Change, Message, ReadState, ReplicaID, Role, StateMachine, StateMachineTransition,
    Status, Storage, TransitionAbandonedReason, TransitionState, USER,
};
use rand::RngExt;
use std::sync::Arc;
use std::time::Duration;

/// How a part of a turn ended: the replica crashed if it is none.
type Survived = Result<Option<()>, Broken>;
const SURVIVED: Survived = Ok(Some(()));

impl<S: Subject> Simulation<S> {
    pub(crate) fn turn(&mut self, id: ReplicaID, mut life: Life<S>) -> Result<(), Broken> {
        self.counters.turns += 1;
        let crash = self.nodes[id].crash.take();
        let survived = self.try_turn(id, &mut life, crash);
        self.scripted(|script, now| script.end_turn(id, now));
        match survived? {
            Some(()) => {
                let node = &self.nodes[id];
                let wake_at = match life.raft.committed().is_empty() {
                    true => node.clock.shows(life.raft.me.deadline, self.now),
                    false => self.now + 1_000,
                };
                self.nodes[id].life = Some(life);
                self.wake_at(id, wake_at);
            }
            None => {
                let why = format!("{crash:?}");
                self.die(id, life, &why);
            }
        }
        Ok(())
    }

    fn try_turn(
        &mut self, id: ReplicaID, life: &mut Life<S>, crash: Option<CrashPoint>,
    ) -> Survived {
        let (mut outputs, crash) = match life.unfinished.take() {
            Some((outputs, earlier)) => (outputs, crash.or(earlier)),
            None => match self.begin_turn(id, life, crash)? {
                Some(outputs) => (outputs, crash),
                None => return Ok(None),
            },
        };
        if outputs.change.is_some()
            && let Some(time) = self.nodes[id].stall.take()
        {
            self.stall_save(id, time);
            life.unfinished = Some((outputs, crash));
            return SURVIVED;
        }
        if self.save(id, life, &mut outputs, crash)?.is_none()
            || self.send_messages(id, life, &mut outputs, crash)?.is_none()
        {
            return Ok(None);
        }
        if self.finish(id, life, outputs, crash)?.is_none() || crash.is_some() {
            self.counters.crashes_applying += 1;
            return Ok(None);
        }
        self.observe(id, life)?;
        self.laws.consistent(&life.status, &self.ledgers[id])?;
        SURVIVED
    }

    /// A turn up to the save. None if the replica crashes in it.
    fn begin_turn(
        &mut self, id: ReplicaID, life: &mut Life<S>, crash: Option<CrashPoint>,
    ) -> Result<Option<Batch<S>>, Broken> {
        self.take_inputs(id, life)?;
        self.observe(id, life)?;
        if crash == Some(CrashPoint::BeforeOutputs) {
            self.scripted(|script, _| script.stops = true);
            self.counters.crashes_before_save += 1;
            return Ok(None);
        }
        let now = self.nodes[id].clock.read(self.now);
        let mut outputs = life.raft.outputs(now);
        self.observe(id, life)?;
        for (to, message) in std::mem::take(&mut outputs.appends) {
            self.send(id, to, message, life.status.role)?;
        }
        if crash == Some(CrashPoint::AfterAppends) {
            self.scripted(|script, _| script.fails = true);
            self.counters.crashes_before_save += 1;
            return Ok(None);
        }
        Ok(Some(outputs))
    }

    /// A replica waits for its disk, and does nothing else meanwhile.
    fn stall_save(&mut self, id: ReplicaID, time: Time) {
        let endless = time == Time::MAX;
        self.counters.endless_saves += u64::from(endless);
        self.counters.stalled_saves += u64::from(!endless);
        let until = self.now.saturating_add(time);
        note!(self, "{id} waits for its disk until {:?}", Duration::from_nanos(until));
        self.scripted(|script, _| script.say_after(format!("# {id} waits for its disk")));
        self.nodes[id].paused_until = until;
    }

    fn send_messages(
        &mut self, id: ReplicaID, life: &Life<S>, outputs: &mut Batch<S>, crash: Option<CrashPoint>,
    ) -> Survived {
        let mut crashes = crash == Some(CrashPoint::AfterSave);
        for (to, message) in std::mem::take(&mut outputs.messages) {
            crashes |= crash == Some(CrashPoint::AmongMessages) && self.random.random_ratio(1, 2);
            if crashes {
                break;
            }
            self.send(id, to, message, life.status.role)?;
        }
        self.counters.crashes_before_messages += u64::from(crashes);
        if crashes {
            self.scripted(|script, _| script.say_after(format!("drop {id}->")));
        }
        Ok((!crashes).then_some(()))
    }

    fn take_inputs(&mut self, id: ReplicaID, life: &mut Life<S>) -> Result<(), Broken> {
        let now = self.nodes[id].clock.read(self.now);
        for message in std::mem::take(&mut life.inbox) {
            if self.trace.is_some() {
                let from = match message.from_id {
                    USER => "user".into(),
                    id => id.to_string(),
                };
                self.note(format!("{from} -> {id}: {}", crate::trace::message(&message)));
                self.script_message(id, &message);
            }
            life.raft.step(now, message);
        }
        self.script_rest(id, life, now);
        if !life.raft.wants_transitions() {
            return Ok(());
        }
        let (numbers, transitions): (Vec<_>, Vec<_>) = life.proposals.drain(..).unzip();
        let known = transitions.iter().map(digest_of).zip(numbers);
        life.queued.extend(known);
        for question in std::mem::take(&mut life.questions) {
            let ticket = life.raft.read(now);
            life.reads.insert(ticket, (question, self.laws.commit(), self.counters.turns));
        }
        life.raft.propose(transitions);
        Ok(())
    }

    /// Judges what can be seen of a replica, whenever it may have changed.
    fn observe(&mut self, id: ReplicaID, life: &mut Life<S>) -> Result<(), Broken> {
        let seen = life.raft.me.clone();
        let before = std::mem::replace(&mut life.status, seen.clone());
        self.observe_role(id, life, &before)?;
        for (peer, progress) in &seen.peers {
            let same = before.role == Role::Leader && before.term == seen.term;
            let was = before.peers.get(peer).filter(|it| same && it.since <= progress.since);
            if was.is_some_and(|it| it.matched > progress.matched) {
                return broken("K6", format!("{id}: matched of {peer} fell: {seen:?}"));
            }
        }
        let committed = self.laws.commit();
        if seen.commit > committed {
            let role = if before.term == seen.term { before.role } else { seen.role };
            let configurations: [&Arc<_>; 2] = [&before.membership, &seen.membership];
            self.laws.commits(&seen, role, &configurations, &self.ledgers)?;
            self.counters.committed += (seen.commit - committed) as u64;
            self.count_configurations(committed + 1, seen.commit);
        }
        Ok(())
    }

    fn observe_role(
        &mut self, id: ReplicaID, life: &mut Life<S>, before: &Status,
    ) -> Result<(), Broken> {
        let seen = &life.status;
        if seen.term < before.term || seen.commit < before.commit || seen.applied < before.applied {
            return broken("K9", format!("went back from {before:?} to {seen:?}"));
        }
        let other = before.leader.zip(seen.leader).filter(|(was, is)| was != is);
        if let Some((was, is)) = other.filter(|_| before.term == seen.term) {
            return broken("K1", format!("{id} follows {was} and then {is} in term {}", seen.term));
        }
        let deposed =
            before.role == Role::Leader && (seen.role != Role::Leader || before.term != seen.term);
        self.counters.depositions += u64::from(deposed);
        // A leadership that is not durable yet is none: nothing of it has left the replica.
        let leads = seen.role == Role::Leader && self.ledgers[id].term == seen.term;
        if leads && life.led != seen.term {
            life.led = seen.term;
            note!(self, "{id} leads term {}", seen.term);
            self.counters.elections += 1;
            self.laws.leads(id, seen.term)?;
            self.laws.complete(seen.term, &self.ledgers[id])?;
        }
        Ok(())
    }

    fn count_configurations(&mut self, from: usize, to: usize) {
        for index in from..=to {
            match self.laws.configuration(index) {
                Some(membership) if !membership.outgoing.is_empty() => self.counters.joint += 1,
                Some(_) => self.counters.final_configurations += 1,
                None => {}
            }
        }
    }

    pub(crate) fn send(
        &mut self, id: ReplicaID, to: ReplicaID, message: Message<S::Transition, S::Data>,
        role: Role,
    ) -> Result<(), Broken> {
        self.counters.sent += 1;
        if to == id || to >= self.nodes.len() {
            return broken("K7", format!("{id} sends to {to}"));
        }
        match &message.body {
            Body::TimeoutNow => self.counters.timeouts_now += 1,
            Body::RequestVote { transfer: true, .. } => self.counters.transfers += 1,
            _ => {}
        }
        self.judge_leaving(id, to, &message, role)?;
        let copy = self.script.is_some().then(|| message.clone());
        let arrivals = self.network.send(
            self.now,
            (id, to, message),
            &self.faults,
            &mut self.random,
            &mut self.counters,
        );
        if let Some(message) = copy.filter(|_| arrivals[0].is_none()) {
            self.script_loss(id, to, &message);
        }
        for (at, ticket) in arrivals.into_iter().flatten() {
            self.schedule(at, Event::Arrival(ticket));
        }
        Ok(())
    }

    fn judge_leaving(
        &mut self, id: ReplicaID, to: ReplicaID, message: &Message<S::Transition, S::Data>,
        role: Role,
    ) -> Result<(), Broken> {
        let of_leader = match message.body {
            Body::Appended { .. } => {
                let leads = self.nodes[to].life.as_ref().is_some_and(|it| {
                    it.status.role == Role::Leader && it.status.term == message.term
                });
                leads.then(|| &self.ledgers[to])
            }
            _ => None,
        };
        self.laws.leaves((id, to), message, (&self.ledgers[id], role), of_leader)
    }

    pub(crate) fn save(
        &mut self, id: ReplicaID, life: &mut Life<S>, outputs: &mut Batch<S>,
        crash: Option<CrashPoint>,
    ) -> Survived {
        let Some(change) = outputs.change.take() else { return SURVIVED };
        let lost = crash == Some(CrashPoint::InSave) && self.random.random_ratio(1, 2);
        if lost {
            self.counters.crashes_in_save_lost += 1;
            self.scripted(|script, _| script.fails = true);
            return Ok(None);
        }
        self.counters.saves += 1;
        self.counters.truncations += u64::from(change.truncate_from.is_some());
        let breaks = std::mem::take(&mut self.nodes[id].breaks);
        let before = breaks.map(|fault| (fault, self.ledgers[id].clone()));
        let appended = self.record(id, &change)?;
        if let Err(error) = life.storage.save(change) {
            let Some((fault, before)) = before else {
                return broken("save", format!("{id}: {error}"));
            };
            note!(self, "{id} cannot save: {error}");
            self.count_failed_save(fault);
            self.scripted(|script, _| script.fails = true);
            // Until it is loaded again nobody knows which of the two it is.
            let after = std::mem::replace(&mut self.ledgers[id], before);
            self.nodes[id].in_doubt = Some((after, appended));
            self.nodes[id].breaks = Some(fault);
            return Ok(None);
        }
        self.laws.know_all(&appended)?;
        if crash == Some(CrashPoint::InSave) {
            self.counters.crashes_in_save_kept += 1;
            self.scripted(|script, _| script.say_after(format!("drop {id}->")));
            return Ok(None);
        }
        life.raft.saved();
        self.observe(id, life)?;
        SURVIVED
    }

    fn count_failed_save(&mut self, fault: DiskFault) {
        self.counters.failed_saves += 1;
        let count = match fault {
            DiskFault::CrashAt(_) => &mut self.counters.torn_saves,
            DiskFault::Reordered(_) => &mut self.counters.reordered_saves,
            DiskFault::Fails => &mut self.counters.refused_saves,
            DiskFault::FailsAfterAll => &mut self.counters.unsure_saves,
            DiskFault::Full(_) => &mut self.counters.full_disks,
        };
        *count += 1;
    }

    /// Takes down what becomes durable.
    fn record(
        &mut self, id: ReplicaID, change: &Change<S::Transition, S::Data>,
    ) -> Result<Vec<Appended>, Broken> {
        if self.trace.is_some() {
            let line = format!("{id} saves {}", crate::trace::change(change));
            self.note(line);
        }
        let may_lose = change.truncate_from.is_some() || change.snapshot.is_some();
        let held = may_lose.then(|| self.laws.held_by(&self.ledgers[id])).flatten();
        let appended = self.ledgers[id].save(change)?;
        self.laws.keeps(held, &self.ledgers[id], &appended)?;
        Ok(appended)
    }

    /// What a storage loads must be what was saved.
    pub(crate) fn recovered(
        &mut self, id: ReplicaID, saved: &Change<S::Transition, S::Data>,
    ) -> Result<(), Broken> {
        let mut fresh = Ledger::default();
        fresh.save(saved).or_else(|it| broken("durable", format!("{id} loads nonsense: {it}")))?;
        if let Some((after, appended)) = self.nodes[id].in_doubt.take() {
            let kept = fresh.same(&after);
            self.counters.failed_saves_kept += u64::from(kept);
            self.counters.failed_saves_lost += u64::from(!kept);
            if kept {
                self.ledgers[id] = after;
                self.laws.know_all(&appended)?;
            }
        }
        match fresh.same(&self.ledgers[id]) {
            true => Ok(()),
            false => {
                broken("durable", format!("{id} saved {:?}, loads {fresh:?}", self.ledgers[id]))
            }
        }
    }

    /// The last part of a turn: the state machine.
    fn finish(
        &mut self, id: ReplicaID, life: &mut Life<S>, outputs: Batch<S>, crash: Option<CrashPoint>,
    ) -> Survived {
        if let Some(snapshot) = outputs.restore {
            self.counters.installs += 1;
            let index = snapshot.last_included_index;
            note!(self, "{id} installs the snapshot at {index}");
            life.machine.set_snapshot(snapshot);
            self.laws.reaches(index, self.subject.digest(&life.machine))?;
        }
        for (transitions, state) in outputs.states {
            for transition in transitions.iter() {
                self.proceed(id, life, transition, &state)?;
            }
        }
        if self.apply(id, life, crash)?.is_none() {
            return Ok(None);
        }
        self.take_reads(id, life)?;
        let Life { raft, machine, .. } = life;
        let compacted = raft.compact(|index, term| {
            self.counters.snapshots += 1;
            machine.create_snapshot(index, term)
        });
        compacted.expect("the snapshot is the one that was asked for");
        SURVIVED
    }

    /// Tells the state machine what has become of a proposal.
    fn proceed(
        &mut self, id: ReplicaID, life: &mut Life<S>, transition: &S::Transition,
        state: &TransitionState,
    ) -> Result<(), Broken> {
        let TransitionState::Abandoned(reason) = state else {
            let known = life.queued.contains_key(&digest_of(transition));
            if *state != TransitionState::Queued || !known && digest_of(transition) != self.noop {
                return broken("outcome", format!("{id}: {state:?} {transition:?} out of nothing"));
            }
            life.machine.register_transition_state(transition.get_id(), state.clone());
            return Ok(());
        };
        match reason {
            TransitionAbandonedReason::NotLeader => self.counters.not_leader += 1,
            TransitionAbandonedReason::ConflictWithLeader => self.counters.overwritten += 1,
            TransitionAbandonedReason::OutcomeUnknown => self.counters.unknown += 1,
        }
        self.end(life, transition, reason.clone())
    }

    fn apply(&mut self, id: ReplicaID, life: &mut Life<S>, crash: Option<CrashPoint>) -> Survived {
        let mut left = self.faults.applied_at_once;
        while !life.raft.committed().is_empty() && left > 0 {
            let slice = life.raft.committed();
            let count = slice.len().min(left).min(16);
            let slice = slice[..count].to_vec();
            let first = life.raft.me.applied + 1;
            for (index, transition) in (first..).zip(slice) {
                if crash == Some(CrashPoint::Applying) && self.random.random_ratio(1, 3) {
                    return Ok(None);
                }
                self.apply_one(id, life, index, transition)?;
            }
            life.raft.applied(count);
            left -= count;
        }
        SURVIVED
    }

    fn apply_one(
        &mut self, id: ReplicaID, life: &mut Life<S>, index: usize, transition: S::Transition,
    ) -> Result<(), Broken> {
        let digest = digest_of(&transition);
        note!(self, "{id} applies {index}: {transition:?}");
        self.laws.applies(index, digest)?;
        self.counters.applied += 1;
        let name = || transition.get_id();
        life.machine.register_transition_state(name(), TransitionState::Committed);
        life.machine.apply_transition(transition.clone());
        life.machine.register_transition_state(name(), TransitionState::Applied);
        self.laws.reaches(index, self.subject.digest(&life.machine))?;
        if let Some(number) = life.queued.remove(&digest) {
            self.counters.acknowledged += 1;
            let at = Duration::from_nanos(self.now);
            self.subject.ended(at, number, Ending::Applied, &life.machine);
        }
        Ok(())
    }

    /// A proposal has ended without being applied.
    fn end(
        &mut self, life: &mut Life<S>, transition: &S::Transition,
        reason: TransitionAbandonedReason,
    ) -> Result<(), Broken> {
        let digest = digest_of(transition);
        note!(self, "{} abandons {transition:?}: {reason:?}", life.status.id);
        let state = TransitionState::Abandoned(reason.clone());
        life.machine.register_transition_state(transition.get_id(), state);
        if digest == self.noop {
            return Ok(());
        }
        let Some(number) = life.queued.remove(&digest) else {
            return broken("outcome", format!("{transition:?} ends twice or was never queued"));
        };
        let ending = match reason {
            TransitionAbandonedReason::OutcomeUnknown => Ending::Unknown,
            _ => {
                self.laws.refuse(digest)?;
                Ending::Refused
            }
        };
        self.subject.ended(Duration::from_nanos(self.now), number, ending, &life.machine);
        Ok(())
    }

    fn take_reads(&mut self, id: ReplicaID, life: &mut Life<S>) -> Result<(), Broken> {
        for (ticket, state) in life.raft.take_reads() {
            let Some((number, committed, turn)) = life.reads.remove(&ticket) else {
                return broken("read", format!("{id} answers {ticket:x} twice or out of nothing"));
            };
            if state == ReadState::Abandoned {
                self.counters.reads_abandoned += 1;
                continue;
            }
            let applied = life.raft.me.applied;
            note!(self, "{id} answers read {number} at {applied}");
            if applied < committed {
                let what = format!("{id} reads at {applied} what was asked at {committed}");
                return broken("K12", what);
            }
            self.counters.reads_ready += 1;
            let leads = life.status.role == Role::Leader;
            let at_once = turn == self.counters.turns && !life.status.peers.is_empty();
            self.counters.lease_reads += u64::from(leads && at_once);
            self.counters.follower_reads += u64::from(!leads);
            if self.quiet {
                self.ready.insert(number, id);
            }
            self.subject.ready(Duration::from_nanos(self.now), number, &life.machine);
        }
        Ok(())
    }

    /// A transition to propose at a replica.
    pub(crate) fn propose_at(&mut self, id: ReplicaID) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let transition = self.subject.transition(number, &mut self.random);
        note!(self, "user -> {id}: {transition:?}");
        if let Some(life) = &mut self.nodes[id].life {
            self.subject.proposed(Duration::from_nanos(self.now), number, &transition);
            life.proposals.push((number, transition));
            self.wake_soon(id);
        }
        number
    }

    /// A read to ask at a replica.
    pub(crate) fn read_at(&mut self, id: ReplicaID) -> u64 {
        let number = self.next_read;
        self.next_read += 1;
        note!(self, "user -> {id}: read {number}");
        if let Some(life) = &mut self.nodes[id].life {
            self.subject.read(Duration::from_nanos(self.now), number);
            life.questions.push(number);
            self.wake_soon(id);
        }
        number
    }

    pub(crate) fn election_timeout(&self) -> u64 {
        nanos(self.faults.election_timeout_range.1)
    }
}
