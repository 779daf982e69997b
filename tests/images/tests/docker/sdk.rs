//! Docker's Python client, and testcontainers on top of it.

use crate::client::Docker;
use naru_image_tests::harness::{text, tool};

const SCRIPT: &str = r#"
import docker, io, tarfile
client = docker.from_env()
assert client.ping()
assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
try:
    client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"], remove=True)
    raise SystemExit("it should have failed")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3 and b"no" in error.stderr
box = client.containers.run("busybox", ["sleep", "1000"], detach=True, name="py", labels={"a": "b"},
                            ports={"80/tcp": None}, mem_limit="64m", environment={"X": "y"})
code, output = box.exec_run(["sh", "-c", "echo $X; exit 4"])
assert (code, output) == (4, b"y\n"), (code, output)
code, (out, err) = box.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
assert (out, err) == (b"o\n", b"e\n")
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as tar:
    info = tarfile.TarInfo("f"); info.size = 3
    tar.addfile(info, io.BytesIO(b"abc"))
assert box.put_archive("/tmp", data.getvalue())
stream, stat = box.get_archive("/tmp/f")
assert stat["name"] == "f" and stat["size"] == 3
assert tarfile.open(fileobj=io.BytesIO(b"".join(stream))).extractfile("f").read() == b"abc"
assert box.stats(stream=False)["memory_stats"]["limit"] == 64 << 20
assert [it.name for it in client.containers.list(filters={"label": "a=b"})] == ["py"]
box.reload()
assert box.ports["80/tcp"][0]["HostPort"].isdigit()
box.stop(timeout=0)
assert box.wait()["StatusCode"] == 137
box.remove(v=True)
try:
    client.containers.get("py")
    raise SystemExit("it should be gone")
except docker.errors.NotFound:
    pass
volume = client.volumes.create("sdk", labels={"l": "1"})
assert client.volumes.list(filters={"label": "l=1"}) == [volume]
volume.remove()
network = client.networks.create("sdk")
network.remove()
assert client.images.get("busybox").attrs["Os"] == "linux"

from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs
import urllib.request
with DockerContainer("busybox").with_command(
        ["sh", "-c", "mkdir /w; echo tested > /w/index.html; echo ready; exec httpd -f -p 80 -h /w"]
        ).with_exposed_ports(80) as web:
    wait_for_logs(web, "ready")
    url = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(100):
        try:
            assert opener.open(url, timeout=5).read() == b"tested\n"
            break
        except OSError:
            import time; time.sleep(0.05)
    else:
        raise SystemExit("the container was not reached")
assert client.containers.list(all=True) == []
print("fine")
"#;

#[test]
fn pythons_client_and_testcontainers_work() {
    let docker = Docker::start();
    let library = tool("docker").ancestors().nth(2).unwrap().join("python-docker");
    let mut command = std::process::Command::new("timeout");
    let output = command
        .args(["120", "python3", "-c", SCRIPT])
        .env("PYTHONPATH", library)
        .env("DOCKER_HOST", format!("unix://{}", docker.socket().display()))
        .env("TESTCONTAINERS_RYUK_DISABLED", "true")
        .output()
        .unwrap();
    assert!(output.status.success() && text(&output).contains("fine"), "{}", text(&output));
    docker.daemon.destroy();
}
