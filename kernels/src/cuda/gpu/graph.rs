//! Recorded steps: stream capture, instantiated once, launched many times.

use cudarc::driver::sys as cu;

use super::expect;
use crate::cuda::driver::GraphId;

/// Instantiated graphs, by id. Bounded by the caller: one per bucket of rows.
#[derive(Default)]
pub(super) struct Graphs {
    executables: Vec<cu::CUgraphExec>,
}

impl Graphs {
    pub fn begin(stream: cu::CUstream) {
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours and not recording.
        expect("cuStreamBeginCapture", unsafe { cu::cuStreamBeginCapture_v2(stream, mode) });
    }

    /// `None` if something during the recording cannot be recorded, or the device refuses it.
    pub fn end(&mut self, stream: cu::CUstream) -> Option<GraphId> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: `graph` is writable and the stream is recording.
        let ended = unsafe { cu::cuStreamEndCapture(stream, &mut graph) };
        if ended != cu::CUresult::CUDA_SUCCESS || graph.is_null() {
            return None;
        }
        // SAFETY: the graph was just recorded; an executable keeps no reference to it.
        let made = unsafe { cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: as above.
        expect("cuGraphDestroy", unsafe { cu::cuGraphDestroy(graph) });
        if made != cu::CUresult::CUDA_SUCCESS {
            return None;
        }
        self.executables.push(executable);
        Some(GraphId(self.executables.len() as u32 - 1))
    }

    /// Ends a recording that failed halfway; outcomes do not matter, the stream must only stop recording.
    pub fn abandon(stream: cu::CUstream) {
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is writable.
        let ended = unsafe { cu::cuStreamEndCapture(stream, &mut graph) };
        if ended == cu::CUresult::CUDA_SUCCESS && !graph.is_null() {
            // SAFETY: the graph was just made and nothing refers to it.
            let _ = unsafe { cu::cuGraphDestroy(graph) };
        }
    }

    pub fn launch(&self, graph: GraphId, stream: cu::CUstream) {
        let executable = self.executables[graph.0 as usize];
        // SAFETY: instantiated in `end` and never destroyed.
        expect("cuGraphLaunch", unsafe { cu::cuGraphLaunch(executable, stream) });
    }
}
