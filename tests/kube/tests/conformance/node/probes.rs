//! Probes: what is restarted, what is left alone, what is ready.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node};

/// Answers `Health/Check` with SERVING: HTTP/2 settings, headers, a message and trailers, always the same bytes.
const GRPC_SERVER: &str = r"cat > /tmp/serve << 'END'
head -c 110 > /dev/null
echo asked >&2
printf '\000\000\000\004\000\000\000\000\000\000\000\000\004\001\000\000\000\000'
printf '\000\000\024\001\004\000\000\000\001\210\017\020\020application/grpc'
printf '\000\000\007\000\000\000\000\000\001\000\000\000\000\002\010\001'
printf '\000\000\017\001\005\000\000\000\001\000\013grpc-status\0010'
sleep 0.5
END
nc -ll -p 5000 -e sh /tmp/serve";

fn probed(case: &Case, script: &str, kind: &str, probe: Value) {
    let mut pod = case.pod("probed", script);
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    let mut probe = probe;
    for (key, value) in [("periodSeconds", 1), ("failureThreshold", 1), ("timeoutSeconds", 5)] {
        if probe[key].is_null() {
            probe[key] = json!(value);
        }
    }
    main_of(&mut pod)[kind] = probe;
    case.create(&case.path("v1", "pods"), &pod);
}

/// As `probed` with a liveness probe that asks only once the same question has been answered well: how long
/// the program takes to start is not what is tried.
fn probed_once_started(case: &Case, script: &str, probe: &Value) {
    let mut pod = case.pod("probed", script);
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    for (kind, failures) in [("startupProbe", 100), ("livenessProbe", 1)] {
        let mut probe = probe.clone();
        for (key, value) in [("periodSeconds", 1), ("failureThreshold", failures), ("timeoutSeconds", 5)] {
            probe[key] = json!(value);
        }
        main_of(&mut pod)[kind] = probe;
    }
    case.create(&case.path("v1", "pods"), &pod);
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

fn restarted(script: &'static str, probe: Value) -> impl Fn(&Case) {
    move |case| {
        probed(case, script, "livenessProbe", probe.clone());
        let pod = case.wait_for("a restart", &case.path("v1", "pods/probed"), |it| restarts(it) > 0);
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert!(last["exitCode"].as_i64().is_some_and(|it| it != 0), "{pod:#}");
    }
}

/// Asked several times and found well, the container goes on. `word` is what the log says for each time.
fn left_alone(script: &'static str, probe: Value, word: &'static str) -> impl Fn(&Case) {
    move |case| {
        probed_once_started(case, script, &probe);
        case.wait("the probe to have asked a few times", || {
            (case.logs("probed").matches(word).count() >= 5).then_some(())
        });
        let pod = case.get(&case.path("v1", "pods/probed"));
        assert_eq!(restarts(&pod), 0, "{pod:#}");
    }
}

fn left_alone_by_tcp(case: &Case) {
    probed_once_started(case, "httpd -f -p 8080 -h /www", &json!({"tcpSocket": {"port": 8080}}));
    case.wait_running("probed");
    case.wait("the probe to have connected a few times", || {
        let count = case.exec("probed", &["awk", "/^Tcp: [0-9]/ {print $7}", "/proc/net/snmp"]);
        count.trim().parse::<u32>().is_ok_and(|it| it >= 4).then_some(())
    });
    assert_eq!(restarts(&case.get(&case.path("v1", "pods/probed"))), 0);
}

fn monotonic(case: &Case) {
    probed(case, "sleep 1000", "livenessProbe", json!({"exec": {"command": ["false"]}}));
    let mut last = 0;
    let at = case.path("v1", "pods/probed");
    case.wait("restarts to be counted", || {
        let now = restarts(&case.get(&at));
        assert!(now >= last, "{now} after {last}");
        last = now;
        (now >= 2).then_some(())
    });
}

fn not_before_delay(case: &Case) {
    const DELAY: i64 = 3;
    let probe = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": DELAY});
    probed(case, "sleep 1000", "readinessProbe", probe);
    let at = case.path("v1", "pods/probed");
    let running = |it: &Value| it["status"]["containerStatuses"][0]["state"]["running"].is_object();
    let began = std::time::Instant::now();
    let pod = case.wait_for("the container to run", &at, running);
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
    let pod = case.wait_running("probed");
    assert!(began.elapsed().as_millis() as i64 >= DELAY * 1000 - 500, "{:?}", began.elapsed());
    assert_eq!(restarts(&pod), 0);
}

fn never_ready(case: &Case) {
    let probe = json!({"exec": {"command": ["sh", "-c", "echo asked >> /proc/1/fd/1; false"]}});
    probed(case, "sleep 1000", "readinessProbe", probe);
    case.wait("the probe to have asked a few times", || {
        (case.logs("probed").matches("asked").count() >= 3).then_some(())
    });
    let pod = case.get(&case.path("v1", "pods/probed"));
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
    assert_eq!((pod["status"]["phase"].as_str(), restarts(&pod)), (Some("Running"), 0));
}

pub fn all() -> Vec<Scenario> {
    let http = || json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let cat = |more: &str| json!({"exec": {"command": ["sh", "-c", format!("cat /tmp/health {more}")]}});
    let page = "touch /www/healthz; httpd -f -vv -p 8080 -h /www";
    let failing_page = "touch /www/healthz; (sleep 1; rm /www/healthz) & httpd -f -p 8080 -h /www";
    vec![
        node(
            "[sig-node] Probing container should *not* be restarted with a /healthz http liveness probe [NodeConformance] [Conformance]",
            left_alone(page, http(), "url:/healthz"),
        ),
        node(
            "[sig-node] Probing container should *not* be restarted with a GRPC liveness probe [NodeConformance] [Conformance]",
            left_alone(GRPC_SERVER, json!({"grpc": {"port": 5000}}), "asked"),
        ),
        node(
            "[sig-node] Probing container should *not* be restarted with a exec \"cat /tmp/health\" liveness probe [NodeConformance] [Conformance]",
            left_alone("echo ok > /tmp/health; sleep 1000", cat("&& echo asked >> /proc/1/fd/1"), "asked"),
        ),
        node(
            "[sig-node] Probing container should *not* be restarted with a tcp:8080 liveness probe [NodeConformance] [Conformance]",
            left_alone_by_tcp,
        ),
        node(
            "[sig-node] Probing container should be restarted with a /healthz http liveness probe [NodeConformance] [Conformance]",
            restarted(failing_page, http()),
        ),
        node(
            "[sig-node] Probing container should be restarted with a GRPC liveness probe [NodeConformance] [Conformance]",
            restarted(GRPC_SERVER, json!({"grpc": {"port": 5001}, "initialDelaySeconds": 1})),
        ),
        node(
            "[sig-node] Probing container should be restarted with a exec \"cat /tmp/health\" liveness probe [NodeConformance] [Conformance]",
            restarted("echo ok > /tmp/health; sleep 1; rm /tmp/health; sleep 1000", cat("")),
        ),
        node(
            "[sig-node] Probing container should have monotonically increasing restart count [NodeConformance] [Conformance]",
            monotonic,
        ),
        node(
            "[sig-node] Probing container with readiness probe should not be ready before initial delay and never restart [NodeConformance] [Conformance]",
            not_before_delay,
        ),
        node(
            "[sig-node] Probing container with readiness probe that fails should never be ready and never restart [NodeConformance] [Conformance]",
            never_ready,
        ),
    ]
}
