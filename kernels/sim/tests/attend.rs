//! Attention kernels and the merge: see attend/scene.rs for how a step is set up.

mod scene;

use kernels::cuda::params::attend::AttendWidth;
use scene::{FAMILIES, Family, Model, Run, Scene};

#[test]
fn first_light() {
    let model = Model { group: 4, kv_heads: 2, head_dim: 64, page: 16, window: None };
    let scene = Scene::new(model, 1, &[700, 300]);
    let runs = [Run { sequence: 0, start: 650, rows: 50 }, Run { sequence: 1, start: 299, rows: 1 }];
    for family in FAMILIES {
        let Some(kernel) = model.kernel(family) else { continue };
        let now = std::time::Instant::now();
        let plan = scene.plan(&runs, &[], kernel.rows_max, 4);
        let out = scene.attend(&runs, &plan, family, 0);
        eprintln!("{family:?} {} items {} states {:?}", plan.items.len(), plan.states, now.elapsed());
        scene.assert_right(&runs, &out, &format!("{family:?}"));
    }
    let _ = AttendWidth::Wide;
    let _ = Family::Mma;
}
