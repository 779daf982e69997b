//! A change of resources of a pod that runs.

use jiff::Timestamp;
use naru_client::EventKind;
use naru_runtime::cgroup;

use super::{Worker, container_id};
use crate::pod::{DesiredContainer, Resources};
use crate::provide;
use crate::state::Failure;

impl Worker {
    /// Makes the limits of running containers those that the object names now.
    pub(super) fn resize(&mut self, now: Timestamp) {
        let changed: Vec<DesiredContainer> = self
            .pod
            .all()
            .filter(|container| {
                let state = self.seen.container(&container.name);
                state.is_running() && state.stop.is_none() && state.resources != container.resources.written
            })
            .cloned()
            .collect();
        if changed.is_empty() {
            self.seen.resize = None;
            return;
        }
        if let Some(message) = self.infeasible() {
            if self.seen.resize.is_none() {
                self.event(EventKind::Warning, "ResizeInfeasible", message.clone());
            }
            self.seen.resize = Some(Failure::new("Infeasible", message, 0, now));
            return;
        }
        self.seen.resize = None;
        for container in changed {
            self.resize_container(&container, now);
        }
    }

    /// What the machine could never give.
    fn infeasible(&self) -> Option<String> {
        let have = provide::allocatable(&self.shared);
        let sum = |of: fn(&Resources) -> Option<u64>| -> u64 {
            self.pod.containers.iter().chain(self.pod.sidecars()).filter_map(|it| of(&it.resources)).sum()
        };
        let (cpu, memory) = (sum(|it| it.cpu_millis_request), sum(|it| it.memory_bytes_request));
        if cpu > have.cpu_millis {
            return Some(format!(
                "Node didn't have enough capacity: cpu, requested: {cpu}, capacity: {}",
                have.cpu_millis
            ));
        }
        (memory > have.memory_bytes).then(|| {
            format!(
                "Node didn't have enough capacity: memory, requested: {memory}, capacity: {}",
                have.memory_bytes
            )
        })
    }

    fn resize_container(&mut self, container: &DesiredContainer, now: Timestamp) {
        let name = container.name.as_str();
        let state = self.seen.container(name);
        let (attempt, before, wanted) = (state.attempt, &state.resources, &container.resources.written);
        let differs = |resource: &str| {
            ["limits", "requests"].iter().any(|kind| before[*kind][resource] != wanted[*kind][resource])
        };
        let restarts = container.resize.cpu_restarts && differs("cpu")
            || container.resize.memory_restarts && differs("memory");
        if restarts {
            self.state(name).replace = true;
            self.event(EventKind::Normal, "Killing", format!("Container {name} resize requires restart"));
            self.stop_container(name, None, now);
            return;
        }
        let Some(sandbox) = &self.sandbox else { return };
        let group = format!("{}/{}", sandbox.pod_cgroup(), container_id(name, attempt));
        let limits = cgroup::Limits {
            memory_bytes_max: container.resources.memory_bytes_max,
            cpu_millis_max: container.resources.cpu_millis_max,
            cpu_millis_request: container.resources.cpu_millis_request,
        };
        match cgroup::set_limits(&group, &limits) {
            Ok(()) => {
                self.state(name).resources = container.resources.written.clone();
                let message = format!("Pod resize completed: container {name}");
                self.event(EventKind::Normal, "ResizeCompleted", message);
            }
            // A container that uses more than it may have from now on; its next change tries again.
            Err(error) => {
                let message = format!("cannot resize container {name}: {error}");
                self.event(EventKind::Warning, "ResizeError", message.clone());
                self.seen.resize = Some(Failure::new("Deferred", message, 0, now));
            }
        }
    }
}
