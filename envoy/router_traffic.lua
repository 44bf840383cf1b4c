-- What operators want of single models, for both model routers: which of several versions answers, which labels mean
-- which version, what is mirrored, compared and logged, and how a request is treated. The control plane writes one line
-- for each model that needs any of it, `NAME KEY=VALUE;KEY=VALUE;...` (control_plane/resources/traffic.py says what the
-- keys are). A line is taken apart at its model's first request, so that ten thousand of them load as fast as pins.

local SHADOW = "x-modelplane-shadow" -- the mirror policy's cluster_header: @shadow, Envoy's own listener for copies
local SHADOW_TO = "x-modelplane-shadow-to" -- where that sends the copy: a cluster
local SHADOW_SPEC = "x-modelplane-shadow-spec" -- gRPC: the model_spec that it adds to the copy, in hex
local SHADOW_PATH = "x-modelplane-shadow-path" -- REST: the path that it gives to the copy
local COMPARER = "x-modelplane-comparer" -- the other mirror policy's cluster_header: @compare, the control planes
local COMPARE = "x-modelplane-compare" -- what they are to compare: MODEL FROM TO
local MIRRORED = "x-modelplane-mirrored" -- present: take the route that has mirror policies
local OBSERVE = "x-modelplane-observe" -- present: the access log has this request
local TOO_LARGE = "x-modelplane-too-large" -- present: the answer says already what is too large

-- Copies wait in memory for the slowest: larger requests aren't copied. A control plane takes messages of up to 4 MiB.
local LARGEST_SHADOW, LARGEST_COMPARED = 8388608, 4000000

local LINES = {}
for name, line in gmatch(TRAFFIC, "(%S+) (%S+)\n") do
  LINES[name] = line
end

local log, random, randomseed = math.log, math.random, math.randomseed
local band, bxor, rshift = bit.band, bit.bxor, bit.rshift

-- The low 32 bits of a product, which a double can't hold as a whole.
local function multiply(a, b)
  return band(band(a, 65535) * b + band(rshift(a, 16) * b, 65535) * 65536, -1)
end

-- FNV-1a.
local function hash(text)
  local state = -2128831035
  for i = 1, #text do
    state = multiply(bxor(state, byte(text, i)), 16777619)
  end
  return state
end

-- Every bit of the input reaches every bit of the output (the finisher of MurmurHash3). 0 <= the result < 2^32.
local function mix(state)
  state = multiply(bxor(state, rshift(state, 16)), 2246822507)
  state = multiply(bxor(state, rshift(state, 13)), 3266489909)
  return bxor(state, rshift(state, 16)) % 4294967296
end

-- Each worker has a Lua state of its own, and LuaJIT seeds all of them alike. The addresses differ from state to state,
-- the time from start to start.
randomseed(mix(hash(tostring({}) .. tostring(hash) .. os.time() .. os.clock())))

-- The decimal string as a varint, exactly.
local function to_varint(decimal)
  local high, low = tonumber(sub(decimal, 1, -10)) or 0, tonumber(sub(decimal, -9))
  local bytes = ""
  while true do
    local remainder = high % 128
    high, low = (high - remainder) / 128, remainder * 1e9 + low
    local bits = low % 128
    low = (low - bits) / 128
    if high == 0 and low == 0 then
      return bytes .. char(bits)
    end
    bytes = bytes .. char(bits + 128)
  end
end

local function field(number, content)
  return char(number * 8 + 2) .. to_varint(tostring(#content)) .. content
end

-- A version of another model or of the same one, to which a share of the requests is mirrored.
local function read_shadow(encoded, version, share)
  local spec = field(1, field(1, decode(encoded)) .. field(2, "\8" .. to_varint(version)))
  local hex = gsub(spec, ".", function(character)
    return format("%02x", byte(character))
  end)
  return {
    model = encoded,
    version = version,
    spec = hex,
    segment = (gsub(encoded, "[/:]", escape)), -- a path's
    share = tonumber(share),
  }
end

local function read_policy(name, line)
  local given = {}
  for key, value in gmatch(line, "(%w+)=([^;]*)") do
    given[key] = value
  end
  local policy = {
    name = name,
    labels = {},
    shadows = {},
    total = 0,
    sticky = given.sticky,
    observe = tonumber(given.observe) or OBSERVED,
    compare = tonumber(given.compare),
    between = given.between and (gsub(given.between, ",", " ")),
    timeout = given.timeout,
    retries = given.retries,
    largest = tonumber(given.largest),
  }
  if given.weights then
    policy.weights = {}
    for version, weight in gmatch(given.weights, "(%d+)*(%d+)") do
      policy.total = policy.total + tonumber(weight)
      policy.weights[#policy.weights + 1] = { version = version, weight = tonumber(weight), hash = hash(version) }
    end
  end
  for label, version in gmatch(given.labels or "", "([^,*]+)*(%d+)") do
    policy.labels[label] = version
  end
  for encoded, version, share in gmatch(given.mirrors or "", "([^,@]+)@(%d+)*([%d.]+)") do
    policy.shadows[#policy.shadows + 1] = read_shadow(encoded, version, share)
  end
  -- Whether it can be carried out only with the body at hand.
  policy.reads = policy.weights or policy.largest or policy.between or next(policy.labels) or next(policy.shadows)
  return policy
end

-- Of a model without a line: nothing but that its times are told, where the fleet wants them.
local OTHERS = OBSERVED and read_policy("", "")

-- What operators want of a model; nil if nothing.
local function policy_of(encoded)
  local policy = LINES[encoded] or OTHERS
  if type(policy) == "string" then
    policy = read_policy(encoded, policy)
    LINES[encoded] = policy
  end
  return policy
end

-- The version that the same key always gets while the weights are the same. Each version draws by the key's hash, and
-- the one that would first have come up in a race at speeds of their weights wins (weighted rendezvous hashing): a
-- version whose weight grows takes keys only from others, each in proportion, and one that falls out gives away only its
-- own. So from 90/10 to 80/20 a tenth of all keys moves. And it isn't the same keys that get each new version first.
local function stick(weights, key)
  local state, best, least = hash(key), nil, math.huge
  for i = 1, #weights do
    local one = weights[i]
    local score = -log((mix(bxor(state, one.hash)) + 0.5) / 4294967296) / one.weight
    if score < least then
      best, least = one.version, score
    end
  end
  return best
end

-- The version that answers a request which names none; nil if the model has no weights.
local function draw(policy, headers)
  local weights = policy.weights
  if not weights then
    return nil
  elseif #weights == 1 then
    return weights[1].version
  end
  local key = policy.sticky and headers:get(policy.sticky)
  if key and key ~= "" then
    return stick(weights, key)
  end
  local left = random() * policy.total
  for i = 1, #weights - 1 do
    left = left - weights[i].weight
    if left < 0 then
      return weights[i].version
    end
  end
  return weights[#weights].version
end

local function drawn(share)
  return share and (share >= 1 or random() < share)
end

-- What holds for every request for the model, whatever version it names.
local function handle_as(policy, headers)
  if policy.timeout then
    headers:replace("x-envoy-upstream-rq-timeout-ms", policy.timeout)
  end
  if policy.retries then
    headers:replace("x-envoy-max-retries", policy.retries)
  end
  if drawn(policy.observe) then
    headers:replace(OBSERVE, "1")
  end
end

-- Where a copy of this request goes, if anywhere: never to the version that answers it.
local function shadow_of(policy, version, size)
  if #policy.shadows == 0 or size > LARGEST_SHADOW then
    return nil
  end
  local left = random()
  for i = 1, #policy.shadows do
    local shadow = policy.shadows[i]
    left = left - shadow.share
    if left < 0 then
      return not (version and shadow.model == policy.name and shadow.version == version) and shadow or nil
    end
  end
  return nil
end

local function mirror(headers, shadow, protocol)
  headers:replace(MIRRORED, "1")
  headers:replace(SHADOW, "@shadow")
  headers:replace(SHADOW_TO, protocol .. shadow.model .. "@" .. shadow.version)
end

local function compare(policy, headers, size)
  if policy.between and size <= LARGEST_COMPARED and drawn(policy.compare) then
    headers:replace(MIRRORED, "1")
    headers:replace(COMPARER, "@compare")
    headers:replace(COMPARE, policy.name .. " " .. policy.between)
  end
end

local function too_large(policy, name, size)
  return "Request for model " .. printable(name) .. " has " .. format("%.0f", size) .. " bytes, and its policy allows "
    .. format("%.0f", policy.largest)
end
