//! Random layers and steps: on the device, again, and on the emulator; and pages that are zeroed and looked at.

use base::SplitMix;
use kernels::cuda::CudaOptions;
use kernels::{Backend, KvShape, KvType, WeightForm};

use crate::Twin;
use crate::bench::{Device, bits, pool, relative, strict};
use crate::layer::{Case, Layer, PAGES, Step};
use crate::report::Report;

pub fn run(device: &Device, cases: Option<usize>, twin: Twin, report: &mut Report) {
    let mut rng = SplitMix::new(11);
    for n in 0..cases.unwrap_or(if device.is_emulated() { 3 } else { 12 }) {
        let (case, step) = random(&mut rng, n);
        let seed = rng.next_u64();
        let runs: Vec<_> = step.spans.iter().map(|s| (s.start, s.rows)).collect();
        let what = format!("layer {n}");
        println!("{what}: {case:?}, (before, new) {runs:?}");
        report.attempt(&what, |report| {
            let ours = logits(&mut device.backend(strict()), &case, &step, seed);
            let again = logits(&mut device.backend(strict()), &case, &step, seed);
            report.check(&format!("{what} twice"), "the same bits", bits(&again) == bits(&ours));
            let flat = CudaOptions { sharing: None, ..strict() };
            let flat = logits(&mut device.backend(flat), &case, &step, seed);
            report.check(&format!("{what} flat"), "the same bits", bits(&flat) == bits(&ours));
            if twin == Twin::Beside {
                let twin = logits(&mut device.twin(), &case, &step, seed);
                let same = bits(&ours).iter().zip(bits(&twin)).filter(|(a, b)| **a == *b).count();
                let error = relative(&ours, &twin);
                let found = format!("{error:.2e} from the emulator, {same} of {} words equal", ours.len());
                report.check(&format!("{what} emulated"), &found, error < 2e-2);
            }
        });
    }
    report.attempt("pages", |report| pages(device, report));
}

fn logits(b: &mut dyn Backend, case: &Case, step: &Step, seed: u64) -> Vec<f32> {
    Layer::load(b, case, step.rows(), step.spans.len(), seed).run(b, step)
}

fn random(rng: &mut SplitMix, n: usize) -> (Case, Step) {
    let pick = |rng: &mut SplitMix, of: &[usize]| of[rng.below(of.len() as u64) as usize];
    let kv_heads = pick(rng, &[1, 2]);
    let case = Case {
        heads: kv_heads * pick(rng, &[1, 4, 7]),
        kv_heads,
        head_dim: [128, 64, 80][n % 3],
        page_tokens: pick(rng, &[16, 32, 64]),
        window: (n % 4 == 3).then_some(100),
        form: [WeightForm::Bf16, WeightForm::E4m3][n / 2 % 2],
        kind: [KvType::Bf16, KvType::E4m3][n % 2],
    };
    let mut step = Step::default();
    for i in 0..pick(rng, &[1, 3, 5]) as u32 {
        let (start, run) = match rng.below(3) {
            0 => (0, 1 + rng.below(90) as u32),
            1 => (rng.below(700) as u32, 1),
            _ => (rng.below(300) as u32, 1 + rng.below(40) as u32),
        };
        // Pages of the past may be anyone's; those that this step writes belong to one sequence each.
        let pages = (start + run).div_ceil(case.page_tokens as u32);
        let first = start / case.page_tokens as u32;
        let any = |rng: &mut SplitMix| 64 + rng.below(PAGES as u64 - 64) as u32;
        let of = |rng: &mut SplitMix, at: u32| if at < first { any(rng) } else { i * 8 + at - first };
        let pages: Vec<u32> = (0..pages).map(|at| of(rng, at)).collect();
        step.push(start, run, &pages);
    }
    (case, step)
}

/// Zeroing and looking: a planted byte is found, and only there.
fn pages(device: &Device, report: &mut Report) {
    let mut b = device.backend(strict());
    let kv = KvShape { pages: 40, page_tokens: 16, layers: 3, kv_heads: 2, head_dim: 64, kind: KvType::Bf16 };
    pool(&mut b, &mut SplitMix::new(3), kv);
    let all: Vec<u32> = (0..40).collect();
    report.check("pages", "full pages are seen", b.page_unclean(&all) == all);
    b.page_zero(&all);
    report.check("pages", "zeroed pages are clean", b.page_unclean(&all).is_empty());
    for (page, at) in [(7u32, 0), (23, kv.page_bytes() - 1), (39, 12345)] {
        let mut bytes = b.page_read(page);
        bytes[at] = 1;
        b.page_write(page, &bytes);
    }
    report.check("pages", "planted bytes are found", b.page_unclean(&all) == [7, 23, 39]);
}
