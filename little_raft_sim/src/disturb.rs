//! What users do to a cluster, and what the world does to it.

use crate::clock::{Time, nanos};
use crate::laws::Broken;
use crate::simulation::{CrashPoint, Event, Simulation, note};
use crate::subject::Subject;
use little_raft::{Message, ReplicaID};
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use std::time::Duration;

impl<S: Subject> Simulation<S> {
    pub(crate) fn schedule_disturbances(&mut self) {
        use Event::{Break, ChangeMembership, Client, Crash, Cut, Jump, Pause, Stall, Transfer};
        for event in [Client, Crash, Break, Stall, Cut, Pause, Jump, ChangeMembership, Transfer] {
            self.schedule_next(event);
        }
    }

    fn schedule_next(&mut self, event: Event) {
        let mean = match event {
            Event::Client => Some(self.faults.clients),
            Event::Crash => self.faults.crashes,
            Event::Break => self.faults.disk_errors,
            Event::Stall => self.faults.stalls,
            Event::Cut => self.faults.cuts,
            Event::Pause => self.faults.pauses,
            Event::Jump => self.faults.jumps,
            Event::ChangeMembership => self.faults.membership_changes,
            Event::Transfer => self.faults.transfers,
            _ => None,
        };
        if let Some(mean) = mean {
            let wait = self.random.random_range(0..=2 * nanos(mean));
            self.schedule(self.now + wait, event);
        }
    }

    pub(crate) fn disturb(&mut self, event: Event) -> Result<(), Broken> {
        self.act(event)?;
        self.schedule_next(event);
        Ok(())
    }

    /// Does what users or the world do, once.
    pub(crate) fn act(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Client => self.act_as_client(),
            Event::Crash => self.doom()?,
            Event::Break => self.break_disk(),
            Event::Stall => self.stall(),
            Event::Cut => self.cut(),
            Event::Pause => self.pause(),
            Event::Jump => self.jump(),
            Event::ChangeMembership => self.change_membership(),
            Event::Transfer => self.transfer(),
            _ => {}
        }
        Ok(())
    }

    fn any_replica(&mut self) -> ReplicaID {
        self.random.random_range(0..self.nodes.len())
    }

    /// Mostly the leader, sometimes anybody.
    fn likely_leader(&mut self) -> ReplicaID {
        match self.leader() {
            Some(id) if self.random.random_ratio(3, 4) => id,
            _ => self.any_replica(),
        }
    }

    fn act_as_client(&mut self) {
        if self.random.random_range(0..1_000_000) < self.faults.reads {
            let id = if self.random.random() { self.any_replica() } else { self.likely_leader() };
            self.read_at(id);
            return;
        }
        let id = self.likely_leader();
        for _ in 0..self.random.random_range(1..=self.faults.batch) {
            self.propose_at(id);
        }
    }

    fn doom(&mut self) -> Result<(), Broken> {
        use CrashPoint::{AfterAppends, AfterSave, AfterTurn, AmongMessages, Applying};
        use CrashPoint::{BeforeOutputs, InSave};
        let points =
            [BeforeOutputs, AfterAppends, InSave, AfterSave, AmongMessages, Applying, AfterTurn];
        let all = self.random.random_ratio(1, 12);
        let ids = if all { (0..self.nodes.len()).collect() } else { vec![self.likely_leader()] };
        for id in ids {
            self.nodes[id].crash = points.choose(&mut self.random).copied();
            self.kill_in_save(id)?;
        }
        Ok(())
    }

    /// A replica that waits for its disk is killed there, rather than in its next turn.
    fn kill_in_save(&mut self, id: ReplicaID) -> Result<(), Broken> {
        let node = &mut self.nodes[id];
        if let Some(mut life) = node.life.take_if(|life| life.unfinished.is_some())
            && let Some((mut outputs, _)) = life.unfinished.take()
        {
            node.crash = None;
            self.save(id, &mut life, &mut outputs, Some(CrashPoint::InSave))?;
            self.scripted(|script, now| script.end_turn(id, now));
            self.die(id, life, "in a save that does not end");
        }
        Ok(())
    }

    fn break_disk(&mut self) {
        let id = self.likely_leader();
        if let Some(fault) = self.faults.disk_faults.choose(&mut self.random).copied()
            && self.subject.break_storage(id, fault)
        {
            self.nodes[id].breaks = Some(fault);
        }
    }

    fn stall(&mut self) {
        let id = self.likely_leader();
        let endless = self.random.random_ratio(1, 4);
        let long = 4 * self.election_timeout();
        let time = if endless { Time::MAX } else { self.random.random_range(0..long) };
        self.nodes[id].stall = Some(time);
    }

    fn cut(&mut self) {
        let replicas = self.nodes.len();
        self.counters.cuts += 1;
        if self.random.random_ratio(1, 3) {
            note!(self, "all links heal");
            self.network.heal();
            self.scripted(|script, now| script.say(now, "heal".into()));
        } else if self.random.random_ratio(1, 3) {
            let (from, to) = (self.likely_leader(), self.any_replica());
            let one_way = self.faults.one_way_cuts && self.random.random();
            note!(self, "cut {from} -> {to} one way: {one_way}");
            self.cut_link(from, to, one_way);
        } else {
            let alone = self.random.random_ratio(1, 2).then(|| self.likely_leader());
            let side: Vec<bool> = (0..replicas)
                .map(|id| alone.map_or_else(|| self.random.random(), |alone| id == alone))
                .collect();
            let one_way = self.faults.one_way_cuts && self.random.random_ratio(1, 3);
            note!(self, "partition {side:?} one way: {one_way}");
            for (from, to) in (0..replicas).flat_map(|from| (0..replicas).map(move |to| (from, to)))
            {
                if side[from] && !side[to] {
                    self.cut_link(from, to, one_way);
                }
            }
        }
    }

    pub(crate) fn cut_link(&mut self, from: ReplicaID, to: ReplicaID, one_way: bool) {
        self.network.cut(from, to, one_way);
        let link = if one_way { "->" } else { "-" };
        self.scripted(|script, now| script.say(now, format!("cut {from}{link}{to}")));
    }

    fn pause(&mut self) {
        let id = self.likely_leader();
        let time = self.random.random_range(0..4 * self.election_timeout());
        note!(self, "{id} pauses for {:?}", Duration::from_nanos(time));
        self.counters.pauses += 1;
        // One that waits for its disk goes on waiting.
        let node = &mut self.nodes[id];
        node.paused_until = node.paused_until.max(self.now + time);
    }

    fn jump(&mut self) {
        let id = self.any_replica();
        let ahead = self.random.random_range(0..4 * self.election_timeout());
        let skew = u64::from(self.faults.clock_skew);
        let rate = 1_000_000 + self.random.random_range(0..=2 * skew) - skew;
        note!(self, "the clock of {id} jumps ahead by {:?}", Duration::from_nanos(ahead));
        self.counters.jumps += 1;
        self.nodes[id].clock.change(self.now, Duration::from_nanos(ahead), rate);
        let ahead = ahead / 1_000_000;
        self.scripted(|script, now| script.say(now, format!("advance {id} {ahead}")));
        self.wake_at(id, self.now);
    }

    fn change_membership(&mut self) {
        let mut ids: Vec<ReplicaID> = (0..self.nodes.len()).collect();
        ids.shuffle(&mut self.random);
        let voters = self.random.random_range(1..=ids.len().min(self.faults.voters + 1));
        let learners = self.random.random_range(0..=ids.len() - voters);
        let learners = ids[voters..voters + learners].to_vec();
        ids.truncate(voters);
        self.ask(Message::change_membership(ids, learners));
    }

    fn transfer(&mut self) {
        let to = self.any_replica();
        self.ask(Message::transfer_leadership(to));
    }

    fn ask(&mut self, message: Message<S::Transition, S::Data>) {
        let id = self.likely_leader();
        if let Some(life) = &mut self.nodes[id].life {
            life.inbox.push(message);
            self.wake_soon(id);
        }
    }
}
