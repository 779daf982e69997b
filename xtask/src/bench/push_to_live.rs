//! From the start of `git push` until a request gets the new version: workflow, image and rollout included.

use super::measure::{self, median};
use super::{Bench, Goal, Line, Result};

const ROUNDS: usize = 5;

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let shop = bench.shop()?;
    let times: Result<Vec<f64>> = (0..ROUNDS).map(|_| shop.push_version()).collect();
    let times = times?;
    Ok(vec![Line {
        what: "push to live, one line changed, p50".into(),
        unit: "s",
        ours: median(&times),
        peer: None,
        ratios: Vec::new(),
        goal: Goal::None,
        note: format!(
            "{:.2} to {:.2} s, with the example's tests, lint, compilation and image build; published beside it: \
             Dokku waits 10 s before it switches, Argo CD looks at git every 180 s, GitLab's runner every 3 s",
            measure::min(&times),
            measure::max(&times)
        ),
    }])
}
