//! Events are for people who look now; after an hour without news they go.

use jiff::Timestamp;
use kube_kinds::strategy::Propagation;
use kube_kinds::{name, namespace, parse_key, time, uid};

use crate::action::{Action, Plan, kind};
use crate::harness::{Controller, Touched, View};

/// As long as Kubernetes keeps them.
const EVENT_SECONDS_MAX: i64 = 3600;

pub struct EventExpiry;

impl Controller for EventExpiry {
    fn name(&self) -> &'static str {
        "event-expiry"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        match change.is("core/events/") && !change.deleted {
            true => vec![change.key.to_string()],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some((_, _, place, event)) = parse_key(key) else { return plan };
        let events = kind("", "Event");
        let Some(event) = view.objects.find(&events, place, event) else { return plan };
        let last = [
            &event["series"]["lastObservedTime"],
            &event["lastTimestamp"],
            &event["eventTime"],
            &event["metadata"]["creationTimestamp"],
        ];
        // The youngest of them: what clients say of the past does not make an event old.
        let age = last.into_iter().filter_map(|it| time::seconds_since(it, now)).min().unwrap_or(0);
        match EVENT_SECONDS_MAX - age {
            left if left > 0 => plan.again_in(left),
            _ => plan.push(Action::Delete {
                kind: events,
                namespace: namespace(&event).to_string(),
                name: name(&event).to_string(),
                uid: uid(&event).to_string(),
                propagation: Propagation::Background,
            }),
        }
        plan
    }
}
