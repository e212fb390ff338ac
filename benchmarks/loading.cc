// Loads a SavedModel as tensorflow_model_server does, and runs images of zeros.
//
// loading VERSION THREADS prints four numbers: the seconds until the first answer, the resident megabytes
// before the load, the megabytes by which the process grew until then, and the median milliseconds of a run.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session_options.h"

namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double ResidentMegabytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::stod(line.substr(6)) / 1e3;
  }
  return 0;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status.ToString() << std::endl;
  std::exit(1);
}

}  // namespace

int main(int, char** arguments) {
  const std::string version = arguments[1];
  tensorflow::SessionOptions options;
  options.config.set_intra_op_parallelism_threads(std::atoi(arguments[2]));
  options.config.set_inter_op_parallelism_threads(std::atoi(arguments[2]));
  if (std::ifstream(version + "/assets.extra/saved_model_config.pb").good()) {
    options.config.mutable_graph_options()->mutable_rewrite_options()->set_disable_meta_optimizer(true);
  }
  const double before = ResidentMegabytes();
  const auto start = Clock::now();
  tensorflow::SavedModelBundle bundle;
  Check(tensorflow::LoadSavedModel(options, tensorflow::RunOptions(), version, {"serve"}, &bundle));
  const auto& signature = bundle.meta_graph_def.signature_def().at("serving_default");
  const std::string fed = signature.inputs().begin()->second.name();
  const std::string fetched = signature.outputs().begin()->second.name();
  // The server drops what it does not need of the file's contents.
  tensorflow::MetaGraphDef().Swap(&bundle.meta_graph_def);
  tensorflow::Tensor image(tensorflow::DT_FLOAT, tensorflow::TensorShape({1, 224, 224, 3}));
  std::memset(image.data(), 0, image.TotalBytes());
  std::vector<tensorflow::Tensor> outputs;
  Check(bundle.session->Run({{fed, image}}, {fetched}, {}, &outputs));
  const double seconds = SecondsSince(start), grown = ResidentMegabytes() - before;
  std::vector<double> taken;
  for (int run = 0; run < 20; ++run) {
    const auto begin = Clock::now();
    Check(bundle.session->Run({{fed, image}}, {fetched}, {}, &outputs));
    taken.push_back(SecondsSince(begin));
  }
  std::nth_element(taken.begin(), taken.begin() + 10, taken.end());
  std::cout << seconds << " " << before << " " << grown << " " << 1e3 * taken[10] << std::endl;
}
