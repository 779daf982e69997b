//! Real links in real namespaces; needs root.

use std::process::Command;

use naru_net::{Config, Network, link_name, teardown};

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().expect(program);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process in a network namespace of its own.
struct Namespace(std::process::Child);

impl Namespace {
    fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("unshare");
        let own = std::fs::read_link("/proc/self/ns/net").expect("net");
        let theirs = || std::fs::read_link(format!("/proc/{}/ns/net", child.id()));
        while theirs().is_ok_and(|net| net == own) {
            std::thread::yield_now();
        }
        Namespace(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let pid = self.pid().to_string();
        let mut all = vec!["-t", &pid, "-n"];
        all.extend(arguments);
        run("nsenter", &all)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn pods_reach_each_other_and_the_machine_and_everything_can_be_removed() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bridge = format!("nt{}", std::process::id());
    let config = Config::new(&bridge, "10.213.77.0/24".parse().expect("a subnet"));
    teardown(&config).await.expect("clean");
    let network =
        Network::start(config.clone(), ["10.213.77.2".parse().expect("an address")]).await.expect("starts");
    let (a, b) = (Namespace::new(), Namespace::new());
    let first = network.attach("pod-a", a.pid()).await.expect("attached");
    let second = network.attach("pod-b", b.pid()).await.expect("attached");
    assert_eq!((first.to_string().as_str(), second.to_string().as_str()), ("10.213.77.3", "10.213.77.4"));
    for target in [second, network.gateway()] {
        let (reached, text) = a.run(&["busybox", "ping", "-c", "1", "-W", "2", &target.to_string()]);
        assert!(reached, "{target}: {text}");
    }
    assert!(a.run(&["ip", "route"]).1.contains("default via 10.213.77.1"));
    let (has_table, table) = run("nft", &["list", "table", "ip", &format!("naru_{bridge}")]);
    assert!(has_table && table.contains("masquerade"), "{table}");

    // A second start finds what is there; another instance is told that the network is taken.
    let again = Network::start(config.clone(), [first, second]).await.expect("starts again");
    let c = Namespace::new();
    assert_eq!(again.attach("pod-c", c.pid()).await.expect("attached").to_string(), "10.213.77.5");
    let other = Config::new("nt-other", config.subnet);
    let error = Network::start(other, []).await.expect_err("taken");
    assert!(error.to_string().contains("overlaps 10.213.77.0/24"), "{error}");

    // The cable goes with the namespace.
    drop(a);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while run("ip", &["link", "show", &link_name("pod-a")]).0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    teardown(&config).await.expect("removed");
    assert!(!run("ip", &["link", "show", &bridge]).0);
    assert!(!run("ip", &["link", "show", &link_name("pod-b")]).0);
    assert!(!run("nft", &["list", "table", "ip", &format!("naru_{bridge}")]).0);
    teardown(&config).await.expect("twice is fine");
}
