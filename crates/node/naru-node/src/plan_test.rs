use serde_json::{Value, json};

use super::*;
use crate::pod::lower_pod;
use crate::state::Stop;

const DRAIN: SignedDuration = SignedDuration::from_secs(1);

fn pod(spec: Value) -> DesiredPod {
    lower_pod(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
}

fn one(policy: &str) -> DesiredPod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]}))
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn ready_sandbox() -> Observed {
    Observed { sandbox: SandboxState::Ready { address: "10.0.0.2".into() }, ..Observed::default() }
}

fn ended(attempt: u32, code: i32, from: i64, to: i64) -> Ended {
    Ended {
        attempt,
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        started_at: Some(at(from)),
        finished_at: at(to),
    }
}

fn stop(asked_at: Timestamp) -> Stop {
    Stop { asked_at, grace: None, hook: false, signalled_at: Some(asked_at), killed: false }
}

fn actions(pod: &DesiredPod, seen: &Observed, now: i64) -> Vec<Action> {
    plan(pod, seen, DRAIN, at(now)).actions
}

#[test]
fn a_pod_gets_a_sandbox_then_images_then_containers() {
    let pod = one("Always");
    let mut seen = Observed::default();
    assert_eq!(actions(&pod, &seen, 0), [Action::CreateSandbox]);
    seen.sandbox = SandboxState::Creating;
    assert_eq!(actions(&pod, &seen, 0), []);
    seen = ready_sandbox();
    assert_eq!(actions(&pod, &seen, 0), [Action::EnsureImage { container: "a".into() }]);
    let state = seen.containers.entry("a".into()).or_default();
    state.image = ImageState::Present;
    assert_eq!(actions(&pod, &seen, 0), [Action::Start { container: "a".into(), attempt: 0 }]);
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Pending);
}

#[test]
fn init_containers_run_one_after_the_other_and_first() {
    let pod = pod(json!({
        "initContainers": [{"name": "one", "image": "i:1"}, {"name": "two", "image": "i:1"}],
        "containers": [{"name": "a", "image": "i:1"}],
    }));
    let mut seen = ready_sandbox();
    for name in ["one", "two", "a"] {
        seen.containers.entry(name.into()).or_default().image = ImageState::Present;
    }
    assert_eq!(actions(&pod, &seen, 0), [Action::Start { container: "one".into(), attempt: 0 }]);
    seen.containers.get_mut("one").unwrap().end(ended(0, 0, 0, 1));
    assert_eq!(actions(&pod, &seen, 1), [Action::Start { container: "two".into(), attempt: 0 }]);
    seen.containers.get_mut("two").unwrap().end(ended(0, 1, 1, 2));
    assert_eq!(
        actions(&pod, &seen, 2),
        [Action::Start { container: "two".into(), attempt: 1 }],
        "it is tried again"
    );
    seen.containers.get_mut("two").unwrap().end(ended(1, 0, 2, 3));
    assert_eq!(actions(&pod, &seen, 3), [Action::Start { container: "a".into(), attempt: 0 }]);
}

#[test]
fn restarts_back_off_from_ten_seconds_to_five_minutes() {
    let pod = one("Always");
    let mut seen = ready_sandbox();
    let mut now = 0;
    let mut delays = Vec::new();
    for attempt in 0..9 {
        let state = seen.containers.entry("a".into()).or_default();
        state.image = ImageState::Present;
        state.end(ended(attempt, 1, now, now + 1));
        now += 1;
        let decided = plan(&pod, &seen, DRAIN, at(now));
        let delay = decided.wake_at.map_or(0, |wake| wake.duration_since(at(now)).as_secs());
        delays.push(delay);
        now += delay;
        assert_eq!(
            actions(&pod, &seen, now),
            [Action::Start { container: "a".into(), attempt: attempt + 1 }]
        );
    }
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    // A long healthy run is forgiven.
    seen.containers.get_mut("a").unwrap().end(ended(9, 1, now, now + 700));
    assert_eq!(actions(&pod, &seen, now + 700).len(), 1);
}

#[test]
fn restart_policies_decide_the_end() {
    for (policy, code, phase, restarts) in [
        ("Always", 0, PodPhase::Running, true),
        ("OnFailure", 0, PodPhase::Succeeded, false),
        ("OnFailure", 1, PodPhase::Running, true),
        ("Never", 0, PodPhase::Succeeded, false),
        ("Never", 1, PodPhase::Failed, false),
    ] {
        let pod = one(policy);
        let mut seen = ready_sandbox();
        let state = seen.containers.entry("a".into()).or_default();
        state.image = ImageState::Present;
        state.end(ended(0, code, 0, 1));
        assert_eq!(pod_phase(&pod, &seen), phase, "{policy} {code}");
        let expect =
            if restarts { Action::Start { container: "a".into(), attempt: 1 } } else { Action::TearDown };
        assert_eq!(actions(&pod, &seen, 1), [expect], "{policy} {code}");
    }
}

#[test]
fn deletion_drains_then_stops_then_kills_then_forgets() {
    let pod = one("Always");
    let mut seen = ready_sandbox();
    let state = seen.containers.entry("a".into()).or_default();
    state.phase = Phase::Running { since: at(0) };
    seen.deletion = Some(Deletion {
        since: at(10),
        grace: SignedDuration::from_secs(30),
        was_ready: true,
        forced: false,
    });
    let decided = plan(&pod, &seen, DRAIN, at(10));
    assert_eq!(
        (decided.actions, decided.wake_at),
        (vec![], Some(at(11))),
        "requests on their way are served"
    );
    assert_eq!(actions(&pod, &seen, 11), [Action::Stop { container: "a".into() }]);
    seen.containers.get_mut("a").unwrap().stop = Some(stop(at(11)));
    let decided = plan(&pod, &seen, DRAIN, at(12));
    assert_eq!((decided.actions, decided.wake_at), (vec![], Some(at(41))));
    assert_eq!(actions(&pod, &seen, 41), [Action::Kill { container: "a".into() }]);
    seen.containers.get_mut("a").unwrap().end(ended(0, 137, 0, 41));
    assert_eq!(actions(&pod, &seen, 41), [Action::TearDown]);
    seen.sandbox = SandboxState::Gone;
    assert_eq!(actions(&pod, &seen, 41), [Action::DeleteObject]);
    seen.object_deleted = true;
    assert_eq!(plan(&pod, &seen, DRAIN, at(41)), Plan::default());
}

#[test]
fn a_pod_that_never_served_is_stopped_at_once() {
    let pod = one("Always");
    let mut seen = ready_sandbox();
    seen.containers.entry("a".into()).or_default().phase = Phase::Running { since: at(0) };
    seen.deletion = Some(Deletion {
        since: at(10),
        grace: SignedDuration::from_secs(0),
        was_ready: false,
        forced: false,
    });
    assert_eq!(actions(&pod, &seen, 10), [Action::Stop { container: "a".into() }]);
}

#[test]
fn what_the_container_wrote_is_kept_before_the_pod_succeeds() {
    let mut pod = one("Never");
    pod.commit = Some("layer".into());
    let mut seen = ready_sandbox();
    seen.containers.entry("a".into()).or_default().end(ended(0, 0, 0, 1));
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Running);
    assert_eq!(actions(&pod, &seen, 1), [Action::Commit { container: "a".into() }]);
    seen.containers.get_mut("a").unwrap().commit = CommitState::Running;
    assert_eq!(actions(&pod, &seen, 1), []);
    seen.containers.get_mut("a").unwrap().commit = CommitState::Done;
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Succeeded);
}

#[test]
fn a_deadline_fails_the_pod_and_stops_it() {
    let mut pod = one("Never");
    pod.active_deadline_seconds = Some(5);
    let mut seen = ready_sandbox();
    seen.started_at = Some(at(0));
    seen.containers.entry("a".into()).or_default().phase = Phase::Running { since: at(0) };
    assert_eq!(plan(&pod, &seen, DRAIN, at(1)).wake_at, Some(at(5)));
    assert!(
        matches!(&actions(&pod, &seen, 5)[..], [Action::Fail { reason, .. }] if reason == "DeadlineExceeded")
    );
    seen.failed = Some(("DeadlineExceeded".into(), String::new()));
    assert_eq!(actions(&pod, &seen, 5), [Action::Stop { container: "a".into() }]);
}

#[test]
fn a_refused_pod_is_never_started_but_can_be_deleted() {
    let pod = pod(json!({"hostUsers": false, "containers": [{"name": "a", "image": "i:1"}]}));
    let mut seen = Observed::default();
    assert_eq!(actions(&pod, &seen, 0), []);
    seen.deletion = Some(Deletion {
        since: at(0),
        grace: SignedDuration::from_secs(30),
        was_ready: false,
        forced: false,
    });
    assert_eq!(actions(&pod, &seen, 0), [Action::DeleteObject]);
}

#[test]
fn a_probe_that_gave_up_stops_only_its_container() {
    let pod = pod(json!({"terminationGracePeriodSeconds": 3,
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]}));
    let mut seen = ready_sandbox();
    for name in ["a", "b"] {
        seen.containers.entry(name.into()).or_default().phase = Phase::Running { since: at(0) };
    }
    seen.containers.get_mut("b").unwrap().stop = Some(stop(at(5)));
    assert_eq!(plan(&pod, &seen, DRAIN, at(6)).wake_at, Some(at(8)));
    assert_eq!(actions(&pod, &seen, 8), [Action::Kill { container: "b".into() }]);
}

fn with_sidecar(policy: &str) -> (DesiredPod, Observed) {
    let pod = pod(json!({
        "restartPolicy": policy,
        "initContainers": [
            {"name": "s1", "image": "i:1", "restartPolicy": "Always"},
            {"name": "s2", "image": "i:1", "restartPolicy": "Always"},
            {"name": "i", "image": "i:1"}],
        "containers": [{"name": "a", "image": "i:1"}],
    }));
    let mut seen = ready_sandbox();
    for name in ["s1", "s2", "i", "a"] {
        seen.containers.entry(name.into()).or_default().image = ImageState::Present;
    }
    (pod, seen)
}

fn run(seen: &mut Observed, name: &str) {
    let state = seen.containers.get_mut(name).unwrap();
    (state.phase, state.started) = (Phase::Running { since: at(0) }, true);
}

fn start(name: &str) -> Action {
    Action::Start { container: name.into(), attempt: 0 }
}

#[test]
fn sidecars_begin_in_order_and_go_last_in_reverse() {
    let (pod, mut seen) = with_sidecar("Never");
    assert_eq!(actions(&pod, &seen, 0), [start("s1")]);
    seen.containers.get_mut("s1").unwrap().phase = Phase::Running { since: at(0) };
    assert_eq!(actions(&pod, &seen, 0), [], "its startup probe has not passed");
    run(&mut seen, "s1");
    assert_eq!(actions(&pod, &seen, 0), [start("s2")]);
    run(&mut seen, "s2");
    assert_eq!(actions(&pod, &seen, 0), [start("i")]);
    seen.containers.get_mut("i").unwrap().end(ended(0, 0, 0, 1));
    assert_eq!(actions(&pod, &seen, 1), [start("a")]);
    run(&mut seen, "a");
    seen.containers.get_mut("s1").unwrap().end(ended(0, 0, 0, 1));
    let again = Action::Start { container: "s1".into(), attempt: 1 };
    assert_eq!(actions(&pod, &seen, 2), [again], "a sidecar that ends starts again, and holds nothing up");
    run(&mut seen, "s1");
    seen.containers.get_mut("a").unwrap().end(ended(0, 0, 0, 3));
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Running, "while sidecars run");
    assert_eq!(actions(&pod, &seen, 4), [Action::Stop { container: "s2".into() }]);
    seen.containers.get_mut("s2").unwrap().end(ended(0, 143, 0, 4));
    assert_eq!(actions(&pod, &seen, 4), [Action::Stop { container: "s1".into() }]);
    seen.containers.get_mut("s1").unwrap().end(ended(1, 143, 0, 4));
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Succeeded, "how sidecars end does not count");
    assert_eq!(actions(&pod, &seen, 5), [Action::TearDown]);
}

#[test]
fn a_hook_delays_the_signal_and_the_kill_waits_a_moment_for_it() {
    let asked = |signalled_at: Option<Timestamp>| Stop {
        asked_at: at(0),
        grace: None,
        hook: true,
        signalled_at,
        killed: false,
    };
    assert_eq!(asked(None).kill_at(at(30)), at(32));
    assert_eq!(asked(Some(at(3))).kill_at(at(30)), at(30));
    assert_eq!(asked(Some(at(30))).kill_at(at(30)), at(32));
    assert_eq!(stop(at(0)).kill_at(at(0)), at(0));
}

#[test]
fn a_changed_container_begins_again_whatever_the_policy() {
    let pod = one("Never");
    let mut seen = ready_sandbox();
    let state = seen.containers.entry("a".into()).or_default();
    (state.image, state.replace) = (ImageState::Present, true);
    state.end(ended(0, 143, 0, 5));
    assert_eq!(pod_phase(&pod, &seen), PodPhase::Running);
    assert_eq!(actions(&pod, &seen, 5), [Action::Start { container: "a".into(), attempt: 1 }]);
}

/// A pod with several lives.
fn living(life: Value) -> DesiredPod {
    let annotations = json!({naru_objects::labels::LIFE: life.to_string()});
    lower_pod(&json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}]},
    }))
}

fn running_life(run: u32) -> Observed {
    let mut seen = Observed { run, ..ready_sandbox() };
    let state = seen.containers.entry("a".into()).or_default();
    (state.image, state.phase) = (ImageState::Present, Phase::Running { since: at(0) });
    seen
}

#[test]
fn a_life_begins_ends_and_another_begins() {
    // Made, and not started.
    assert_eq!(actions(&living(json!({"run": 0})), &Observed::default(), 0), []);
    assert_eq!(actions(&living(json!({"run": 1})), &Observed::default(), 0), [Action::Begin]);
    // Begun: a pod like any other.
    let begun = Observed { run: 1, ..Observed::default() };
    assert_eq!(actions(&living(json!({"run": 1})), &begun, 0), [Action::CreateSandbox]);
    // Stopped by hand: the signal, the kill after the grace that was given, and the end of the sandbox.
    let stopped = living(json!({"run": 1, "stopped": true, "grace": 3}));
    let mut seen = running_life(1);
    assert_eq!(actions(&stopped, &seen, 0), [Action::Stop { container: "a".into() }]);
    seen.containers.get_mut("a").unwrap().stop = Some(stop(at(0)));
    assert_eq!(actions(&stopped, &seen, 2), []);
    assert_eq!(actions(&stopped, &seen, 3), [Action::Kill { container: "a".into() }]);
    seen.containers.get_mut("a").unwrap().end(ended(0, 137, 0, 3));
    assert_eq!(actions(&stopped, &seen, 4), [Action::TearDown]);
    assert_eq!(pod_phase(&stopped, &seen), PodPhase::Failed);
    seen.sandbox = SandboxState::Gone;
    assert_eq!(actions(&stopped, &seen, 4), []);
    assert_eq!(actions(&living(json!({"run": 2})), &seen, 5), [Action::Begin]);
    // A next life while this one still runs ends it first.
    assert_eq!(
        actions(&living(json!({"run": 2})), &running_life(1), 0),
        [Action::Stop { container: "a".into() }]
    );
}

#[test]
fn a_life_is_restarted_as_its_own_policy_says() {
    let after = |life: Value, first: u32, how: Ended, now: i64| {
        let mut seen = running_life(1);
        let state = seen.containers.get_mut("a").unwrap();
        state.first_attempt = first;
        state.end(how);
        actions(&living(life), &seen, now)
    };
    let again = |attempt| vec![Action::Start { container: "a".into(), attempt }];
    let always = || json!({"run": 1, "restart": "always"});
    assert_eq!(after(always(), 0, ended(0, 0, 0, 1), 2), again(1));
    assert_eq!(after(json!({"run": 1}), 0, ended(0, 1, 0, 1), 2), [Action::TearDown]);
    let twice = || json!({"run": 1, "restart": "on-failure", "retries": 2});
    assert_eq!(after(twice(), 5, ended(6, 1, 0, 1), 2), again(7), "attempts of earlier lives do not count");
    assert_eq!(after(twice(), 5, ended(7, 1, 0, 1), 2), [Action::TearDown]);
    assert_eq!(after(twice(), 5, ended(5, 0, 0, 1), 2), [Action::TearDown]);
    // What cannot be started is told, and not tried for ever.
    let impossible = Ended { reason: "StartError".into(), started_at: None, ..ended(0, 127, 0, 1) };
    assert_eq!(after(always(), 0, impossible, 2), [Action::TearDown]);
    // Docker's pace: a tenth of a second, doubled.
    let mut state = ContainerState { streak: 1, ..ContainerState::default() };
    let pod = living(always());
    let delay = |state: &ContainerState| {
        restart_at(&pod, state, &ended(0, 1, 0, 1)).duration_since(at(1)).as_millis()
    };
    assert_eq!(delay(&state), 100);
    state.streak = 4;
    assert_eq!(delay(&state), 800);
    state.streak = 40;
    assert_eq!(delay(&state), 60_000);
    let held_on = restart_at(&pod, &state, &ended(0, 1, 0, 11)).duration_since(at(11));
    assert_eq!(held_on.as_millis(), 100);
}
