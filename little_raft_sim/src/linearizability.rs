//! Whether what clients saw can be explained by one order of their calls in which each takes effect
//! at some moment between its invocation and its return.
//!
//! The search is Wing and Gong's, with the memory of Lowe ("Testing for linearizability", 2017):
//! calls are put into the order one by one, and a set of calls that has once led to a state is never
//! searched from again. Histories of independent objects, such as keys, are to be checked one by one:
//! that they are linearizable each is the same as that they are together.

use std::collections::HashSet;
use std::hash::Hash;

/// What the object that clients call is supposed to do.
pub trait Model {
    /// The object's state.
    type State: Clone + Eq + Hash;
    /// A call, with what it returned.
    type Operation;

    /// The state before every call.
    fn initial(&self) -> Self::State;

    /// The state after an operation; none if in this state it cannot have returned what it did.
    fn apply(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether an operation never changes the state, whatever it is. Knowing that makes the search
    /// much shorter: where such a call fits it may as well be placed.
    fn only_reads(&self, _operation: &Self::Operation) -> bool {
        false
    }
}

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<O> {
    /// What was called, and what it returned.
    pub operation: O,
    /// When it was invoked.
    pub invoked: u64,
    /// When it returned. A call without a return may take effect at any time after its invocation,
    /// or never.
    pub returned: Option<u64>,
}

/// What a history turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains it.
    Linearizable,
    /// There is none.
    NotLinearizable,
    /// The search was given up after as many steps as it was allowed.
    Undecided,
}

/// Searches for an order that explains a history, in at most `steps` steps.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Operation>], steps: usize) -> Verdict {
    let mut search = Search::new(model, calls);
    for _ in 0..steps {
        if let Some(verdict) = search.step() {
            return verdict;
        }
    }
    Verdict::Undecided
}

/// The events in the order of time as a list from which those of placed calls are taken out.
struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Operation>],
    /// The call of each event, and whether the event is its return.
    events: Vec<(usize, bool)>,
    /// Where each call's return is, if it has one.
    returns: Vec<Option<usize>>,
    next: Vec<usize>,
    previous: Vec<usize>,
    at: usize,
    /// In every state the calls that only read come first.
    reading: bool,
    state: M::State,
    placed: Vec<u64>,
    /// The events of the calls placed so far, each with the state before it, if placing another
    /// instead could lead anywhere else.
    order: Vec<(usize, Option<M::State>)>,
    seen: HashSet<(Vec<u64>, M::State)>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Call<M::Operation>]) -> Self {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * calls.len());
        for (number, call) in calls.iter().enumerate() {
            events.push((call.invoked, false, number));
            events.extend(call.returned.map(|at| (at, true, number)));
        }
        events.sort_unstable();
        let mut returns = vec![None; calls.len()];
        for (place, (.., number)) in events.iter().enumerate().filter(|(_, event)| event.1) {
            returns[*number] = Some(place);
        }
        // One more than there are events is both the beginning and the end of the list.
        let end = events.len();
        Search {
            model,
            calls,
            events: events.into_iter().map(|(_, returns, number)| (number, returns)).collect(),
            returns,
            next: (1..=end).chain([0]).collect(),
            previous: [end].into_iter().chain(0..end).collect(),
            at: 0,
            reading: true,
            state: model.initial(),
            placed: vec![0; calls.len().div_ceil(64)],
            order: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Places a call, skips one, or takes the last one back.
    fn step(&mut self) -> Option<Verdict> {
        let event = self.events.get(self.at).copied();
        let Some((number, false)) = event else {
            if self.reading {
                (self.reading, self.at) = (false, self.next[self.events.len()]);
                return None;
            }
            // At the end every call that has returned is placed.
            return event.map_or(Some(Verdict::Linearizable), |_| self.take_back());
        };
        if self.reading != self.model.only_reads(&self.calls[number].operation) {
            self.at = self.next[self.at];
            return None;
        }
        let after = self.model.apply(&self.state, &self.calls[number].operation);
        let Some(after) = after else {
            self.at = self.next[self.at];
            return None;
        };
        self.placed[number / 64] ^= 1 << (number % 64);
        if self.seen.insert((self.placed.clone(), after.clone())) {
            let before = std::mem::replace(&mut self.state, after);
            self.order.push((self.at, (!self.reading).then_some(before)));
            self.unlink(self.at);
            self.returns[number].into_iter().for_each(|place| self.unlink(place));
            (self.reading, self.at) = (true, self.next[self.events.len()]);
        } else {
            self.placed[number / 64] ^= 1 << (number % 64);
            self.at = self.next[self.at];
        }
        None
    }

    /// A call has returned before which everything possible was tried.
    fn take_back(&mut self) -> Option<Verdict> {
        while let Some((place, state)) = self.order.pop() {
            let (number, _) = self.events[place];
            self.returns[number].into_iter().for_each(|place| self.link(place));
            self.link(place);
            self.placed[number / 64] ^= 1 << (number % 64);
            if let Some(state) = state {
                self.state = state;
                (self.reading, self.at) = (false, self.next[place]);
                return None;
            }
        }
        Some(Verdict::NotLinearizable)
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        (self.next[before], self.previous[after]) = (after, before);
    }

    fn link(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        (self.next[before], self.previous[after]) = (place, place);
    }
}
