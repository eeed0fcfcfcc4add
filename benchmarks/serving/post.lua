-- wrk: posts the requests of a plan in turn and looks at samples of the answers.
--   wrk -s post.lua URL -- PLAN
-- The plan is a Lua file that returns {bodies = FILE, requests, fields, expected, tolerances, every, summary}.
-- wrk does not tell to which request an answer belongs, so a sample is right if it is the answer to one of them;
-- `verify.py` has asked for every window by itself and all at once before.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  plan = dofile(args[1])
  summary_file = plan.summary
  local file = assert(io.open(plan.bodies, "rb"))
  local bodies = file:read("*a")
  file:close()
  prepared = {}
  for index, request in ipairs(plan.requests) do
    local body = bodies:sub(request.start + 1, request.start + request.length)
    prepared[index] = wrk.format("POST", request.path, request.headers, body)
  end
  bodies = nil
  place = number * 7
  seen, checked, wrong, refused, sample = 0, 0, 0, 0, ""
end

function request()
  place = place % #prepared + 1
  return prepared[place]
end

local function numbers_after(body, pattern, count)
  local _, at = body:find(pattern)
  if not at then return nil end
  local found = {}
  for index = 1, count do
    local first, last = body:find("[-+]?%d[%d%.eE+-]*", at + 1)
    if not first then return nil end
    found[index] = tonumber(body:sub(first, last))
    at = last
  end
  return found
end

local function fits(found, wanted, tolerances)
  for index, number in ipairs(wanted) do
    -- `not <=`: a NaN must not pass.
    if not (found[index] and math.abs(found[index] - number) <= tolerances[(index - 1) % #tolerances + 1]) then
      return false
    end
  end
  return true
end

local function right(body)
  local found = {}
  for index, pattern in ipairs(plan.fields) do
    found[index] = numbers_after(body, pattern, #plan.expected[1][index])
    if not found[index] then return false end
  end
  for _, answer in ipairs(plan.expected) do
    local all = true
    for index = 1, #plan.fields do
      all = all and fits(found[index], answer[index], plan.tolerances[index])
    end
    if all then return true end
  end
  return false
end

function response(status, headers, body)
  seen = seen + 1
  if status ~= 200 then
    refused = refused + 1
    if sample == "" then sample = status .. " " .. body:sub(1, 200) end
  elseif plan.every > 0 and (seen <= 2 or seen % plan.every == 0) then
    checked = checked + 1
    if not right(body) then
      wrong = wrong + 1
      if sample == "" then sample = body:sub(1, 200) end
    end
  end
end

function done(summary, latency, requests)
  local checked, wrong, refused, sample = 0, 0, 0, ""
  for _, thread in ipairs(threads) do
    checked = checked + thread:get("checked")
    wrong = wrong + thread:get("wrong")
    refused = refused + thread:get("refused")
    if sample == "" then sample = thread:get("sample") end
  end
  local errors = summary.errors
  local file = assert(io.open(threads[1]:get("summary_file"), "w"))
  file:write(string.format(
    '{"requests":%d,"duration_s":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,"max_ms":%.4f,"checked":%d,"wrong":%d,"refused":%d,'
      .. '"broken":%d}\n%s',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, checked, wrong, refused, errors.connect + errors.read + errors.write + errors.timeout, sample))
  file:close()
end
