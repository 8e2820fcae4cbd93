#include "executor.hpp"

#include "gpu_executor.hpp"
#include "host_executor.hpp"

namespace slipway {

std::unique_ptr<Executor> make_executor(const Plan& plan, std::vector<std::shared_ptr<const Mapping>> weights, Team& team) {
  if (plan.device == Device::host) return std::make_unique<HostExecutor>(plan, std::move(weights), team);
  return std::make_unique<GpuExecutor>(plan, weights, team.size());
}

}  // namespace slipway
